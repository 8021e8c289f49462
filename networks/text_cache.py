"""States of a frozen text encoder, computed once per caption."""

import hashlib
import logging
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from networks.content_hash import content_hash
from networks.text import TextEncoder

log = logging.getLogger(__name__)


class TextCache:
    """Answers as the encoder does, from memory and, where a folder is given, from disk.

    Args:
        encoder: frozen; its weights are part of the key of the files.
        folder: one file for each caption; None keeps memory alone.
        max_bytes: kept in memory, on the encoder's device.
    """

    def __init__(
        self, encoder: TextEncoder, *, folder: str | None = None, max_bytes: int = 512 * 2**20
    ) -> None:
        self._encoder, self._max_bytes = encoder, max_bytes
        self._memory: dict[str, Tensor] = {}
        self._folder = None
        if folder is not None:
            self._folder = Path(folder) / f"text-{_fingerprint(encoder)}"
            self._folder.mkdir(parents=True, exist_ok=True)

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> Tensor:
        """Token states (B, N, D) of B captions, on the encoder's device."""
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._memory]
        absent = [caption for caption in new if not self._read(caption)]
        # One at a time and in the weights' own precision: neither the batch nor the trainer changes a bit.
        with torch.autocast(self._encoder.model.device.type, enabled=False):
            for caption in absent:
                self._keep(caption, self._encoder([caption])[0].clone())
        found = torch.stack([self._memory[caption] for caption in captions])
        while found[0].nbytes * len(self._memory) > self._max_bytes and len(self._memory) > 1:
            del self._memory[next(iter(self._memory))]
        return found

    def _keep(self, caption: str, states: Tensor) -> None:
        self._memory[caption] = states
        if (path := self._path(caption)) is None:
            return
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        stored = {"states": states.contiguous().cpu()}
        try:
            save_file(stored, temporary, metadata={"sha256": content_hash(stored)})
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def _read(self, caption: str) -> bool:
        path = self._path(caption)
        if path is None or not path.is_file():
            return False
        try:
            with safe_open(path, "pt") as file:
                states, expected = file.get_tensor("states"), file.metadata()["sha256"]
            if content_hash({"states": states}) != expected:
                raise ValueError("its checksum is another")
        except Exception as error:  # safetensors and the disk raise errors of many kinds
            log.warning(
                "the stored text states %r are damaged and will be written anew: %s", str(path), error
            )
            return False
        self._memory[caption] = states.to(self._encoder.model.device)
        return True

    def _path(self, caption: str) -> Path | None:
        name = f"{hashlib.sha256(caption.encode()).hexdigest()[:32]}.safetensors"
        return None if self._folder is None else self._folder / name


def _fingerprint(encoder: TextEncoder) -> str:
    digest = hashlib.sha256(str(encoder.tokenizer.model_max_length).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:24]
