"""Random masks and small helpers that the tests of mask metrics share."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate, one_hot


def random_masks(
    count: int = 4, num_classes: int = 3, size: tuple[int, int] = (40, 56), seed: int = 0
) -> Tensor:
    """Blobs of class ids, int64 (count, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, num_classes, 6, 8, generator=generator)
    return interpolate(coarse, size=size, mode="bicubic").argmax(1)


def channels(masks: Tensor, num_classes: int) -> Tensor:
    """One-hot (B, K, H, W), as MONAI takes them."""
    return one_hot(masks, num_classes).movedim(-1, 1)
