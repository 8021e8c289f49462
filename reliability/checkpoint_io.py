"""Checkpoint files that survive a kill, a full disk and a flipped byte."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins import CheckpointIO

from datamodules.atomic_files import atomic_file, write_text

logger = logging.getLogger(__name__)

CHECKSUM_SUFFIX = ".sha256"
DAMAGED_SUFFIX = ".damaged"
LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"


def check_disk_space(folder: Path, needed_bytes: int) -> None:
    """Creates `folder` and checks that its file system has `needed_bytes` free.

    Raises:
        OSError: (ENOSPC) with the folder, the needed and the free bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise OSError(
            errno.ENOSPC,
            f"Checkpoints in {folder} need about {needed_bytes} bytes, but {free} bytes are free; "
            "free some space or choose another run_dir",
        )


class AtomicCheckpointIO(CheckpointIO):
    """Writes each checkpoint beside its target, syncs it to disk and renames it into place, with a SHA-256 sidecar.

    At every moment the file at the final path is whole: the old one or the new one. The sidecar `NAME.sha256` lists
    the old and the new sum while the checkpoint is exchanged, so a kill between the two renames leaves a valid pair.
    Loading checks the sum and never unpickles code. The `last.ckpt` that a newer one replaces stays as `previous.ckpt`:
    a disk can damage a file long after it was written whole.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Writes `checkpoint` to `path`.

        Raises:
            OSError: with path, needed and free bytes, if the disk is full or the file too large. The temporary file
                is gone then and the previous checkpoint is as before.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = _HashingWriter()
        try:
            with atomic_file(path) as writer.file:
                torch.save(checkpoint, writer)  # type: ignore[arg-type]  # it has what save() calls
                if writer.error is not None:
                    raise writer.error
                writer.file.flush()
                if path.name == LAST and path.is_file():
                    _keep(path, path.with_name(PREVIOUS))
                _write_sums(path, [writer.sum.hexdigest(), *_known_sums(path)])
        except OSError as error:
            free = shutil.disk_usage(path.parent).free
            raise OSError(
                error.errno,
                f"Checkpoint {path} was not written ({os.strerror(error.errno or 0)}): it needs {writer.size} bytes, "
                f"{free} bytes are free; the previous checkpoint, if any, is unchanged",
            ) from error
        _sync_folder(path.parent)
        _write_sums(path, [writer.sum.hexdigest()])

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """`read_checkpoint`; code in a checkpoint is never run, whatever `weights_only` says."""
        return read_checkpoint(path, map_location=map_location)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Deletes a checkpoint and its sidecar, if they exist."""
        Path(path).unlink(missing_ok=True)
        _sidecar(Path(path)).unlink(missing_ok=True)


def read_checkpoint(path: str | Path, map_location: Any | None = "cpu") -> dict[str, Any]:
    """Reads a checkpoint after comparing its SHA-256 with the sidecar; without a sidecar it warns and reads.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or holds more than tensors and plain values.
    """
    path = Path(path)
    if not _sum_is_right(path):
        logger.warning(
            "Checkpoint %s has no %s file beside it, so damage may go unseen.", path, CHECKSUM_SUFFIX
        )
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError, KeyError
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"Checkpoint {path} cannot be read: it is damaged or holds more than tensors and plain values "
            f"({first_line})."
        ) from error


def newest_whole(folder: Path) -> Path | None:
    """`last.ckpt` if it is whole, else the later of the whole ones among `previous.ckpt` and `best.ckpt`.

    Each damaged file is named in the log, and a damaged `last.ckpt` is renamed to `last.ckpt.damaged`. None if the
    folder has none of them.

    Raises:
        ValueError: if there are checkpoints but none that can be read.
    """
    steps: dict[Path, int] = {}
    damaged = []
    for name in (LAST, PREVIOUS, BEST):
        path = folder / name
        try:
            if name == LAST:
                if not _sum_is_right(path):
                    read_checkpoint(path)
                return path
            steps[path] = int(read_checkpoint(path)["global_step"])
        except FileNotFoundError:
            continue
        except (ValueError, KeyError) as error:
            damaged.append(str(error))
    if not steps:
        if damaged:
            raise ValueError(
                f"No checkpoint in {folder} can be read, and a run is never started over by itself: "
                f"{' '.join(damaged)} Restore one from a copy, or choose another run_dir."
            )
        return None
    for message in damaged:
        logger.warning("%s", message)
    last = folder / LAST
    if last.exists():  # the next save would keep it in the place of the whole one
        os.replace(last, last.with_name(last.name + DAMAGED_SUFFIX))
        _sidecar(last).unlink(missing_ok=True)
    found = max(steps, key=lambda path: steps[path])
    logger.warning("The run goes on from %s, step %d.", found, steps[found])
    return found


def _sum_is_right(path: Path) -> bool:
    """Whether the file has the sum of its sidecar; False without a sidecar, an error as of `read_checkpoint` else."""
    if not path.is_file():
        raise FileNotFoundError(f"Checkpoint {path} does not exist; give the path of a .ckpt file.")
    known = _known_sums(path)
    try:
        if known and _file_sum(path) not in known:
            raise ValueError(
                f"Checkpoint {path} is damaged: its SHA-256 differs from {_sidecar(path).name}; "
                "use another checkpoint of the run or a copy of this one."
            )
    except OSError as error:  # a failing disk
        raise ValueError(f"Checkpoint {path} cannot be read: {error.strerror or error}.") from error
    return bool(known)


class _HashingWriter:
    """What torch.save writes to `file`, summed and counted.

    torch's zip writer turns an OSError of its file into an unrelated RuntimeError. So the first error is kept, and the
    rest is only counted, which gives the size that was needed.
    """

    file: BinaryIO

    def __init__(self) -> None:
        self.size = 0
        self.sum = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        view = memoryview(data).cast("B")
        self.size += len(view)
        if self.error is None:
            self.sum.update(view)
            try:
                self.file.write(view)
            except OSError as error:
                self.error = error
        return len(view)

    def flush(self) -> None:
        """Does nothing: an error would be lost in torch."""


def _keep(path: Path, kept: Path) -> None:
    """Makes `kept` a second name of the file at `path`, with its sums; at every moment `path` is there."""
    link = kept.with_name(f".{kept.name}.tmp")
    link.unlink(missing_ok=True)
    sums = _known_sums(path)
    try:
        os.link(path, link)
    except OSError as error:
        # Some file systems have no hard links: rename, and until the new file is in place `kept` alone is there.
        logger.debug("no hard link to %s: %s", path, error)
        link = path
    _write_sums(kept, [*sums, *_known_sums(kept)])
    os.replace(link, kept)
    _write_sums(kept, sums)
    if link != path:
        link.unlink(missing_ok=True)  # a rename between two names of one file does nothing


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + CHECKSUM_SUFFIX)


def _known_sums(path: Path) -> list[str]:
    """Sums in the sidecar; the newest first, the format is that of the sha256sum command."""
    sidecar = _sidecar(path)
    if not sidecar.is_file():
        return []
    return [line.split()[0] for line in sidecar.read_text(encoding="utf-8").splitlines() if line.strip()]


def _write_sums(path: Path, sums: list[str]) -> None:
    write_text(_sidecar(path), "".join(f"{digest}  {path.name}\n" for digest in dict.fromkeys(sums)))


def _file_sum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable; some file systems cannot sync a folder, which costs durability only."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        logger.debug("Folder %s was not synced: %s", folder, error)
    finally:
        os.close(descriptor)
