"""Latents of a frozen autoencoder on disk: encoded once, read in every later step and run."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from datamodules.decode import UnreadableImage
from datamodules.moments_file import MomentsFile, sums_path, write
from datamodules.photo_dataset import PhotoDataset
from diffusion.codec import LatentCodec
from networks.content_hash import content_hash

log = logging.getLogger(__name__)

# Moments are stored unscaled.
_NOT_IN_MOMENTS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")


View = Callable[[Tensor], Tensor]


class LatentCache(Callback):
    """Gives the training set its cached latents before the first step.

    A method that names a `source_image` (a function of the photo, such as its grey copy) gets that one's latents too.

    The file's name holds a hash of the autoencoder's weights, dtype and settings and of the data (names, sizes, times
    and ends of the files, transform): a change of any of them makes a new file. It is written under a lock to a
    temporary name and renamed when whole; a damaged one is written anew. Posterior noise and scale factor are applied
    in each step, so cached and uncached training do the same.

    Args:
        folder: where the files lie; each may be deleted while no run uses it.
        batch_size: photos encoded at a time.
    """

    def __init__(self, *, folder: str, batch_size: int = 64) -> None:
        self.folder = Path(folder)
        self.batch_size = batch_size

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Builds or finds the file and hands it to the data set.

        Raises:
            ValueError: random crops, or a module without a codec: there is nothing fixed to store; no room on the
                disk; photos that change while they are encoded.
        """
        dataset = getattr(trainer.datamodule, "train_dataset", None)
        codec = getattr(pl_module, "codec", None)
        if codec is None or dataset is None:
            raise ValueError(
                "callbacks.latent_cache needs a method with a frozen codec; set callbacks.latent_cache=null"
            )
        if not dataset.deterministic:
            raise ValueError(
                "random crops cannot be cached; set datamodule.crop=center or callbacks.latent_cache=null"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(self.folder)
        dataset.moments = self._file(codec, dataset, pl_module.device)
        source_image = getattr(pl_module, "source_image", None)
        if source_image is not None:
            dataset.source_moments = self._file(codec, dataset, pl_module.device, source_image)

    def _file(
        self, codec: LatentCodec, dataset: PhotoDataset, device: torch.device, view: View | None = None
    ) -> MomentsFile:
        """The whole file of the photos, or of what `view` makes of them; written if there is none."""
        photos = dataset.fingerprint()
        name = "" if view is None else f"{view.__module__}.{view.__qualname__}"
        path = self.folder / f"latents-{_fingerprint(codec, photos + name)}.npy"
        with _held(_lock_of(path), path.name):
            moments = _found(path)
            if moments is None:
                what = f" as {view.__name__}" if view is not None else ""
                log.info(
                    "encoding %d photos and their mirror images%s into %s", len(dataset), what, path.name
                )
                write(path, self._encoded(codec, dataset, device, view), len(dataset))
                if dataset.fingerprint() != photos:
                    sums_path(path).unlink()
                    raise ValueError(
                        "photos changed while they were encoded, so their cached latents are not used; start again "
                        "when nothing writes to datamodule.root, or set callbacks.latent_cache=null"
                    )
                moments = MomentsFile(path)
        with suppress(OSError):  # another user's file
            os.utime(path)  # the time of its last use, for whoever deletes old ones
        return moments

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the cache away again: another module may use the data set next."""
        dataset = trainer.datamodule.train_dataset
        dataset.moments = dataset.source_moments = None

    def _encoded(
        self, codec: LatentCodec, dataset: PhotoDataset, device: torch.device, view: View | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Moments in order, and which of them are of a photo that could be read."""
        size_px = dataset.transform.size_px
        for flip in (False, True):
            for start in range(0, len(dataset), self.batch_size):
                images, could_read = [], []
                for index in range(start, min(start + self.batch_size, len(dataset))):
                    try:
                        images.append(dataset.load(index, flip=flip))
                        could_read.append(True)
                    except UnreadableImage as error:
                        log.warning("%s; in training the next photo takes its place", error)
                        images.append(torch.zeros(3, size_px, size_px))
                        could_read.append(False)
                batch = torch.stack(images).to(device)
                seen = batch if view is None else view(batch)
                yield codec.moments(seen).cpu().numpy(), np.array(could_read)


def _found(path: Path) -> MomentsFile | None:
    """The file of an earlier run if it is whole."""
    if not path.exists():
        return None
    try:
        moments = MomentsFile(path)
        moments.check()
    except Exception as error:  # numpy raises errors of many kinds for a bad header
        log.warning("the latent cache %r is damaged and will be written anew: %s", str(path), error)
        return None
    return moments


def _lock_of(path: Path) -> FileLock:
    return FileLock(f"{path}.lock")


@contextmanager
def _held(lock: FileLock, name: str) -> Iterator[None]:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("another process is writing %s; waiting for it", name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _remove_leftovers(folder: Path) -> None:
    """Deletes what a killed writer has left; one that still writes holds its lock."""
    for temporary in folder.glob("latents-*.tmp"):
        try:
            with _lock_of(temporary.with_suffix(".npy")).acquire(timeout=0):
                temporary.unlink(missing_ok=True)
                log.info("deleted %s, which a run that was killed has left", temporary.name)
        except Timeout:
            continue


def _fingerprint(codec: LatentCodec, photos: str) -> str:
    config = dict(getattr(getattr(codec, "vae", None), "config", {}))
    settings = {k: v for k, v in config.items() if not k.startswith("_") and k not in _NOT_IN_MOMENTS}
    parts = [photos, content_hash(codec.state_dict()), json.dumps(settings, sort_keys=True, default=str)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
