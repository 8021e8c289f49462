"""Latents of a frozen autoencoder on disk: encoded once, read in every later step and run."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from filelock import AcquireReturnProxy, FileLock, Timeout
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from datamodules.decode import UnreadableImage
from datamodules.keyed_dataset import KeyedDataset
from datamodules.moments_file import MomentsFile, sums_path, write

log = logging.getLogger(__name__)

Encode = Callable[[Tensor], Tensor]


class LatentCache(Callback):
    """Gives the training set its cached latents before the first step.

    The module's `encodings()` names what is stored, each in a file of its own: functions from images (B, 3, H, W) to
    moments (B, 2Z, h, w). They come back as batch["encodings"][name].

    The file's name holds a hash of the module's `encodings_key()` (the codec's weights, dtype and settings), of the
    function and of the data (names, sizes, times and ends of the files, transform): a change of any makes a new file. It
    is written under a lock and takes its name when whole; a damaged one is written anew. Posterior noise and scale factor
    are applied in each step, so cached and uncached training do the same.

    Args:
        folder: where the files lie; each may be deleted while no run uses it.
        batch_size: images encoded at a time.
    """

    def __init__(self, *, folder: str, batch_size: int = 64) -> None:
        self.folder = Path(folder)
        self.batch_size = batch_size

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Builds or finds the files and hands them to the data set.

        Raises:
            ValueError: a module that names no encodings, or images that differ from epoch to epoch: there is nothing
                fixed to store; no room on the disk; files that change while they are encoded.
        """
        dataset = getattr(trainer.datamodule, "train_dataset", None)
        encodings = pl_module.encodings()
        if not encodings or dataset is None:
            raise ValueError(
                "callbacks.latent_cache needs a method with a frozen codec; set callbacks.latent_cache=null"
            )
        if not dataset.deterministic:
            raise ValueError(
                "random crops, changed colours and images of several sizes cannot be cached; set datamodule.crop=center or "
                "callbacks.latent_cache=null"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(self.folder)
        key = pl_module.encodings_key()
        dataset.encodings = {
            name: self._file(name, encode, key, dataset, pl_module.device)
            for name, encode in encodings.items()
        }

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the cache away again: another module may use the data set next."""
        trainer.datamodule.train_dataset.encodings = {}

    def _file(
        self, name: str, encode: Encode, key: str, dataset: KeyedDataset, device: torch.device
    ) -> MomentsFile:
        """The whole file of one encoding of the images; written if there is none."""
        data = dataset.fingerprint()
        path = self.folder / f"latents-{_fingerprint(name, encode, key, data)}.npy"
        with _locked(path):
            moments = _found(path)
            if moments is None:
                log.info(
                    "encoding %d images and their mirror images (%s) into %s", len(dataset), name, path.name
                )
                write(path, self._encoded(encode, dataset, device), len(dataset))
                if dataset.fingerprint() != data:
                    sums_path(path).unlink()
                    raise ValueError(
                        "files changed while they were encoded, so their cached latents are not used; start again "
                        "when nothing writes to datamodule.root, or set callbacks.latent_cache=null"
                    )
                moments = MomentsFile(path)
        with suppress(OSError):  # another user's file
            os.utime(path)  # the time of its last use, for whoever deletes old ones
        return moments

    def _encoded(
        self, encode: Encode, dataset: KeyedDataset, device: torch.device
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Moments in order, and which of them are of an image that could be read."""
        size_px = dataset.transform.size_px
        assert size_px is not None, "a data set of images of one size"
        for flip in (False, True):
            for indices in torch.arange(len(dataset)).split(self.batch_size):
                images = torch.zeros(len(indices), 3, size_px, size_px)
                could_read = np.ones(len(indices), dtype=bool)
                for row, index in enumerate(indices.tolist()):
                    try:
                        images[row] = dataset.load(index, flip=flip)
                    except UnreadableImage as error:
                        log.warning("%s; in training the next sample takes its place", error)
                        could_read[row] = False
                with torch.no_grad():
                    moments = encode(images.to(device)).float().cpu().numpy()
                yield moments, could_read


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


def _locked(path: Path) -> AcquireReturnProxy:
    lock = FileLock(f"{path}.lock")
    with suppress(Timeout):
        return lock.acquire(timeout=0)
    log.info("another process is writing %s; waiting for it", path.name)
    return lock.acquire()


def _remove_leftovers(folder: Path) -> None:
    """Deletes what a killed writer has left; one that still writes holds its lock."""
    for draft in folder.glob(".latents-*.tmp"):
        path = folder / f"{draft.name.split('.')[1]}.npy"
        with suppress(Timeout), FileLock(f"{path}.lock").acquire(timeout=0):
            draft.unlink(missing_ok=True)
            log.info("deleted %s, which a run that was killed has left", draft.name)


def _fingerprint(name: str, encode: Encode, key: str, data: str) -> str:
    # "image" is the codec's own encoding in every method; another name may stand for another function in each.
    function = "" if name == "image" else f"{encode.__module__}.{getattr(encode, '__qualname__', '')}"
    return hashlib.sha256("\n".join([data, name, function, key]).encode()).hexdigest()[:24]
