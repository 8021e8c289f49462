"""LIIF's query as its paper and code have it, to compare with: a network on every pixel's four cells, without any shortcut."""

import torch
from torch import Tensor
from torch.nn import functional as F

from networks.liif import LiifQuery

# Queries at a time, as in the codes of LIIF, which unfolds, and of Kim and Kim, who do not.
_CHUNKS = {3: 30_000, 1: 65_536}


def grid(size_px: tuple[int, int]) -> Tensor:
    """Centres (H, W, 2) of pixels or cells, y and x in (-1, 1)."""
    axes = [(2 * torch.arange(side) + 1) / side - 1 for side in size_px]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def textbook(query: LiifQuery, features: Tensor, size_px: tuple[int, int]) -> Tensor:
    """The whole picture (B, K, H, W) of features (B, C, h, w), by Eq. 2, 4 and 5 of Chen et al. 2021 with the query's weights."""
    if query.kernel_cells == 3:
        features = F.unfold(features, 3, padding=1).view(len(features), -1, *features.shape[-2:])
    where = grid(size_px).view(1, -1, 2).expand(len(features), -1, -1)
    parts = [
        _queried(query, features, some, size_px) for some in where.split(_CHUNKS[query.kernel_cells], dim=1)
    ]
    return torch.cat(parts, dim=1).movedim(1, 2).unflatten(2, size_px)


def _queried(query: LiifQuery, features: Tensor, where: Tensor, size_px: tuple[int, int]) -> Tensor:
    sides = torch.tensor(features.shape[-2:])
    centres = grid((features.shape[-2], features.shape[-1])).movedim(-1, 0).expand(len(features), -1, -1, -1)
    cell = (2 * sides / torch.tensor(size_px)).expand(*where.shape[:2], 2)
    predicted, areas = [], []
    for shift_y in (-1, 1):
        for shift_x in (-1, 1):
            shifted = where + torch.tensor([shift_y, shift_x]) / sides + 1e-6
            shifted = shifted.clamp(-1 + 1e-6, 1 - 1e-6).flip(-1)[:, None]
            seen = F.grid_sample(features, shifted, mode="nearest", align_corners=False)[:, :, 0].mT
            centre = F.grid_sample(centres, shifted, mode="nearest", align_corners=False)[:, :, 0].mT
            offset = (where - centre) * sides
            hidden = torch.cat([seen, offset, cell], dim=-1)
            for layer in query.layers[:-1]:
                hidden = layer(hidden).relu()
            predicted.append(query.layers[-1](hidden))
            areas.append(offset.prod(-1).abs() + 1e-9)
    total = torch.stack(areas).sum(0)
    # Each prediction has the area of the rectangle that lies opposite.
    pairs = zip(predicted, reversed(areas), strict=True)
    return torch.stack([pred * (area / total)[..., None] for pred, area in pairs]).sum(0)
