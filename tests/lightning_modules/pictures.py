"""Crops of a real photo, the same in every test."""

import skimage.data
import torch
from torch import Tensor
from torch.nn import functional as F

# Top, left and side in pixels: face, patch on the suit, flag, helmet.
_CROPS = ((40, 150, 160), (220, 60, 128), (0, 0, 128), (260, 230, 200))


def astronaut_crops(size_px: int = 32) -> Tensor:
    """Four colourful crops (4, 3, size_px, size_px) in [0, 1]."""
    photo = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1)[None].float() / 255
    crops = [photo[..., top : top + side, left : left + side] for top, left, side in _CROPS]
    return torch.cat([F.interpolate(crop, (size_px, size_px), mode="area") for crop in crops])


def astronaut_batch(size_px: int = 32, count: int = 4) -> dict[str, object]:
    return {
        "image": astronaut_crops(size_px)[:count],
        "caption": ["face", "suit", "flag", "helmet"][:count],
        "name": [f"{number}.png" for number in range(count)],
        "index": torch.arange(count),
    }


def psnr(pred: Tensor, target: Tensor) -> float:
    """Over all pixels of the batch, dB."""
    return float(-10 * (pred - target).square().mean().log10())
