"""The colours of class ids."""

import torch
from torch import Tensor


def class_colours(num_classes: int) -> Tensor:
    """The colour of each class, (K, 3) in [0, 1]: the map of PASCAL VOC, which is black for class 0."""
    ids = torch.arange(num_classes)
    colours = torch.zeros(num_classes, 3, dtype=torch.int64)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((ids >> (3 * bit + channel)) & 1) << (7 - bit)
    return colours.float() / 255.0


def painted(ids: Tensor) -> Tensor:
    """Class ids (..., H, W) of any integer type in their colours, uint8 (..., 3, H, W)."""
    colours = (class_colours(int(ids.max()) + 1) * 255).round().byte()
    return colours.to(ids.device)[ids.long()].movedim(-1, -3)
