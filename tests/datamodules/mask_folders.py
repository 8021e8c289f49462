"""Folders of images with masks, and their data modules."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from datamodules.masks import MasksDataModule


def write_pair(folder: Path, number: int, *, size: tuple[int, int] = (24, 32), raters: int = 1) -> None:
    """An image whose red channel is 80 times the class id, and its mask (of rater 2 the mask less its first rows)."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    ids = np.random.default_rng(number).integers(0, 3, (size[0] // 4, size[1] // 4), dtype=np.uint8)
    ids = np.kron(ids, np.ones((4, 4), dtype=np.uint8))
    rgb = np.stack([ids * 80, np.full_like(ids, number), np.zeros_like(ids)], axis=-1)
    Image.fromarray(rgb).save(folder / "images" / f"im{number}.png")
    for rater in range(raters):
        mask = ids.copy()
        mask[:rater] = 0
        name = f"im{number}.png" if raters == 1 else f"im{number}_{rater + 1}.png"
        Image.fromarray(mask).save(folder / "masks" / name)


def write_masks(folder: Path) -> Path:
    """Eight images to train on and three to validate, with their masks of three classes."""
    for split, numbers in (("train", range(8)), ("val", range(8, 11))):
        for number in numbers:
            write_pair(folder / split, number)
    return folder


def masks_of(root: Path, **options: Any) -> MasksDataModule:
    defaults = {"size_px": 24, "batch_size": 3, "num_classes": 3, "seed": 5, "crop": "random"}
    return MasksDataModule(root=str(root), **(defaults | options))


def built(root: Path, **options: Any) -> MasksDataModule:
    data = masks_of(root, **options)
    data.setup("fit")
    return data


def agrees(image: torch.Tensor, mask: torch.Tensor) -> float:
    """Share of pixels whose red says the class of the mask."""
    return float(((image[0] * 255 - mask * 80).abs() < 25).float().mean())
