"""What is computed once per photo: colour names and mean chroma, kept on disk by the file's content."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from color.names import mean_chroma, name_colors
from datamodules.photo_dataset import PhotoDataset

# Colour shares are read from at most this many pixels a side; more changes no name and costs time.
MAX_SIDE_PX = 128

V = TypeVar("V")


def color_names(dataset: PhotoDataset, *, cache_dir: str | None = None) -> list[tuple[str, ...]]:
    """Names of the main colours of every photo, most frequent first."""
    settings = f"colors {dataset.transform.size_px} {dataset.transform.crop}"
    names = annotated(
        dataset, lambda index: name_colors(_small(dataset, index)), settings=settings, cache_dir=cache_dir
    )
    return [tuple(colors) for colors in names]


def chroma(dataset: PhotoDataset, *, cache_dir: str | None = None) -> list[float]:
    """Mean CIELAB chroma of every photo; 0 is neutral grey."""
    settings = f"chroma {dataset.transform.size_px} {dataset.transform.crop}"
    return annotated(
        dataset,
        lambda index: float(mean_chroma(_small(dataset, index))),
        settings=settings,
        cache_dir=cache_dir,
    )


def annotated(
    dataset: PhotoDataset, annotate: Callable[[int], V], *, settings: str, cache_dir: str | None = None
) -> list[V]:
    """annotate(index) of every photo; photos whose content was seen before with the same settings are looked up.

    Args:
        dataset: The photos.
        annotate: Value of one photo, something JSON can hold.
        settings: All that the value depends on besides the file's bytes.
        cache_dir: Folder of the stored values; None stores nothing.
    """
    if cache_dir is None:
        return [annotate(index) for index in range(len(dataset))]
    file = Path(cache_dir) / f"{hashlib.sha256(settings.encode()).hexdigest()[:16]}.json"
    stored = _read(file)
    keys = [_content_key(path) for path in dataset.paths]
    missing = [index for index, key in enumerate(keys) if key not in stored]
    for index in missing:
        stored[keys[index]] = annotate(index)
    if missing:
        _write(file, stored)
    return [stored[key] for key in keys]


def _small(dataset: PhotoDataset, index: int) -> Tensor:
    image = dataset.load(index)
    if image.shape[-1] <= MAX_SIDE_PX:
        return image
    return torch.nn.functional.adaptive_avg_pool2d(image, MAX_SIDE_PX)


def _content_key(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # Missing, or cut off by a full disk: it is only a cache.
        return {}
    return content if isinstance(content, dict) else {}


def _write(file: Path, content: dict[str, Any]) -> None:
    """Replaces the file in one step, since several processes may write the same one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as temporary:
            json.dump(content, temporary)
        os.replace(name, file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
