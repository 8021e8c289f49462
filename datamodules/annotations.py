"""What is computed once per photo: colour names and mean chroma, kept on disk by the file's content."""

import hashlib
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock
from torch import Tensor

from color.names import mean_chroma, name_colors
from datamodules.atomic_files import write_text
from datamodules.decode import UnreadableImage, pixels_key
from datamodules.keyed_dataset import DECODING_VERSION
from datamodules.photo_dataset import PhotoDataset

log = logging.getLogger(__name__)

# Colour shares are read from at most this many pixels a side; more changes no name and costs time.
MAX_SIDE_PX = 128
# Values are written this often, and at the end.
WRITE_EVERY_S = 120.0

V = TypeVar("V")


def color_names(dataset: PhotoDataset, *, cache_dir: str | None = None) -> list[tuple[str, ...]]:
    """Names of the main colours of every photo, most frequent first."""
    names = _measured(dataset, "colors", lambda image: list(name_colors(image)), list[str](), cache_dir)
    return [tuple(colors) for colors in names]


def chroma(dataset: PhotoDataset, *, cache_dir: str | None = None) -> list[float]:
    """Mean CIELAB chroma of every photo; 0 is neutral grey."""
    return _measured(dataset, "chroma", lambda image: float(mean_chroma(image)), 0.0, cache_dir)


def _measured(
    dataset: PhotoDataset, kind: str, measure: Callable[[Tensor], V], unreadable: V, cache_dir: str | None
) -> list[V]:
    def annotate(index: int) -> V:
        image = dataset.load(index)
        small = image.shape[-1] <= MAX_SIDE_PX
        return measure(image if small else torch.nn.functional.adaptive_avg_pool2d(image, MAX_SIDE_PX))

    settings = f"{kind} {DECODING_VERSION} {dataset.transform.size_px} {dataset.transform.crop}"
    return annotated(dataset, annotate, settings=settings, unreadable=unreadable, cache_dir=cache_dir)


def annotated(
    dataset: PhotoDataset,
    annotate: Callable[[int], V],
    *,
    settings: str,
    unreadable: V,
    cache_dir: str | None = None,
) -> list[V]:
    """annotate(index) of every photo; photos whose content was seen before with the same settings are looked up.

    The file of the values is locked from reading to writing: of two processes one computes and the other waits. It is
    also written from time to time, since captions of a large set take longer than many a machine is lent.

    Args:
        dataset: The photos.
        annotate: Value of one, something JSON can hold; UnreadableImage if its file can't be read.
        settings: All that the value depends on besides the file's bytes.
        unreadable: Value of a photo that can't be read; it is not stored.
        cache_dir: Folder of the stored values; None stores nothing.
    """

    def value(index: int) -> V | None:
        try:
            return annotate(index)
        except UnreadableImage as error:
            log.warning("%s; it is used without what is computed from it", error)
            return None

    values: list[V | None] = []
    if cache_dir is None:
        values = [value(index) for index in range(len(dataset))]
    else:
        Path(cache_dir).mkdir(parents=True, exist_ok=True)
        file = Path(cache_dir) / f"{hashlib.sha256(settings.encode()).hexdigest()[:16]}.json"
        with FileLock(f"{file}.lock"):
            stored = _read(file)
            written_at, num_written = time.monotonic(), len(stored)
            for index, path in enumerate(dataset.paths):
                key = _content_key(path)
                key = key and key + pixels_key(path, dataset.transform.max_pixels)
                values.append(stored[key] if key in stored else value(index))
                if key and values[-1] is not None:
                    stored[key] = values[-1]
                is_due = index + 1 == len(dataset) or time.monotonic() - written_at > WRITE_EVERY_S
                if is_due and len(stored) > num_written:
                    write_text(file, json.dumps({"sha256": _checksum(stored), "values": stored}))
                    written_at, num_written = time.monotonic(), len(stored)
    return [unreadable if value is None else value for value in values]


def _content_key(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""  # annotate says what is wrong with it


def _read(file: Path) -> dict[str, Any]:
    """The stored values; none if the file is missing or damaged: it is only a cache."""
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["sha256"] != _checksum(content["values"]):
            raise ValueError("its checksum is another")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        log.warning("%r is damaged and will be written anew: %s: %s", str(file), type(error).__name__, error)
        return {}
    return dict(content["values"])


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
