"""Latents of a frozen autoencoder on disk: encoded once, read in every later step and run."""

import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from datamodules.photo_dataset import PhotoDataset
from diffusion.codec import LatentCodec

log = logging.getLogger(__name__)


class StoredMoments:
    """Posterior moments float32 (2Z, h, w) of each photo and its mirror image, in one memory-mapped file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._array: np.ndarray | None = None

    def get(self, index: int, flip: bool) -> Tensor:
        """The moments of photo `index`, of its mirror image with flip=True."""
        if self._array is None:  # opened in the loader's worker
            self._array = np.load(self.path, mmap_mode="r")
        return torch.from_numpy(np.array(self._array[int(flip), index]))

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_array": None}


class LatentCache(Callback):
    """Gives the training set its cached latents before the first step.

    The file's name holds a hash of the autoencoder's weights and dtype and of the data (files, sizes, times,
    transform): a change of any of them makes a new file. It is written under a lock to a temporary name and renamed
    when whole. Posterior noise is still drawn in each step, so cached and uncached training do the same.

    Args:
        folder: where the files lie.
        batch_size: photos encoded at a time.
    """

    def __init__(self, *, folder: str, batch_size: int = 64) -> None:
        self.folder = Path(folder)
        self.batch_size = batch_size

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Builds or finds the file and hands it to the data set.

        Raises:
            ValueError: random crops, or a module without a codec: there is nothing fixed to store.
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
        path = self.folder / f"latents-{_fingerprint(codec, dataset)}.npy"
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                self._write(path, codec, dataset, pl_module.device)
        dataset.moments = StoredMoments(path)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the cache away again: another module may use the data set next."""
        trainer.datamodule.train_dataset.moments = None

    def _write(self, path: Path, codec: LatentCodec, dataset: PhotoDataset, device: torch.device) -> None:
        log.info("encoding %d photos and their mirror images into %s", len(dataset), path.name)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        stored: np.memmap | None = None
        try:
            for flip, start, moments in self._encoded(codec, dataset, device):
                if stored is None:
                    shape = (2, len(dataset), *moments.shape[1:])
                    stored = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
                stored[flip, start : start + len(moments)] = moments
            assert stored is not None
            stored.flush()
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def _encoded(
        self, codec: LatentCodec, dataset: PhotoDataset, device: torch.device
    ) -> Iterator[tuple[int, int, np.ndarray]]:
        for flip in (False, True):
            for start in range(0, len(dataset), self.batch_size):
                indices = range(start, min(start + self.batch_size, len(dataset)))
                image = torch.stack([dataset.load(i, flip=flip) for i in indices]).to(device)
                yield int(flip), start, codec.moments(image).cpu().numpy()


def _fingerprint(codec: LatentCodec, dataset: PhotoDataset) -> str:
    digest = hashlib.sha256(dataset.fingerprint().encode())
    for name, tensor in sorted(codec.state_dict().items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:24]
