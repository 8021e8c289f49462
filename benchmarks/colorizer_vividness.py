"""What a ranker of vividness gains over one chroma scale for all photos.

Shapes: K chroma scales, N photos, H/W pixels.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from benchmarks.colorizer_figures import Figures, Spread, spread
from benchmarks.colorizer_photos import BATCH_SIZE, Photos, eight_bit
from color.lab import lightness
from lightning_modules.colorizer import Colorizer
from lightning_modules.requests import DrawSettings

BEST_FIXED, RANKER, NEAREST = "best fixed scale", "ranker", "nearest candidate of each photo"

Scores = Callable[[Tensor], Tensor]  # images (N, 3, H, W) in [0, 1] -> (N,), higher is better


def scores_of(ranker: nn.Module) -> Scores:
    """What a ranker says of any number of images, part by part."""

    @torch.no_grad()
    def scores(images: Tensor) -> Tensor:
        device = next(ranker.parameters()).device
        return torch.cat([ranker(part.to(device)).float().cpu() for part in images.split(BATCH_SIZE)])

    return scores


def ranker_rows(
    module: Colorizer,
    scores: Scores,
    photos: Photos,
    seeds: list[int],
    scales: list[float],
    figures: Figures,
) -> dict[str, dict[str, Spread]]:
    """Figures of every fixed scale, of the best of these, of the ranker's picks and of the nearest candidates."""
    found = [picked(candidates(module, photos, seed, scales), scores, scales, figures) for seed in seeds]
    return {
        name: {key: spread([entry[name][key] for entry in found]) for key in row}
        for name, row in found[0].items()
    }


@torch.no_grad()
def candidates(module: Colorizer, photos: Photos, seed: int, scales: Sequence[float]) -> Tensor:
    """All photos drawn once and scaled: uint8 (K, N, 3, H, W)."""
    parts = []
    for start in range(0, len(photos), BATCH_SIZE):
        part = photos.part(start, start + BATCH_SIZE)
        given = lightness(part.image.to(module.device))
        latent = module.draw_colors(given, part.captions, part.ids, DrawSettings(seed=seed))
        parts.append(eight_bit(module.candidates(given, latent, scales)))
    return torch.cat(parts, dim=1)


def picked(
    images: Tensor, scores: Scores, scales: Sequence[float], figures: Figures
) -> dict[str, dict[str, float]]:
    """What a ranker gains over a fixed scale.

    Args:
        images: candidates uint8 (K, N, 3, H, W).
        scores: of one scale's candidates, all photos at once.
        scales: K chroma scales.
        figures: measures them.

    Returns:
        By row: mean distance of each photo's colourfulness to the truth's, CIEDE2000, and the mean scale taken. The
        row of the ranker has the mean of its distance minus that of the best fixed scale and the standard error of it.
    """
    distance = torch.stack([(figures.colorfulness(c) - figures.true_colorfulness).abs() for c in images])
    error = torch.stack([figures.delta_e(c) for c in images])
    scale = torch.tensor(scales, dtype=torch.float64)[:, None].expand_as(distance)

    def row(choice: Tensor) -> dict[str, float]:
        taken = [t.gather(0, choice[None]).mean().item() for t in (distance, error, scale)]
        return dict(zip(("colorfulness_distance", "delta_e2000", "chroma_scale"), taken, strict=True))

    num_photos = images.shape[1]
    rows = {f"{s:g}": row(torch.full((num_photos,), k)) for k, s in enumerate(scales)}
    best = int(distance.mean(1).argmin())
    choice = torch.stack([scores(c.float() / 255) for c in images]).argmax(0).cpu()
    rows |= {BEST_FIXED: row(torch.full((num_photos,), best)), RANKER: row(choice)}
    rows[NEAREST] = row(distance.argmin(0))
    gain = distance.gather(0, choice[None])[0] - distance[best]
    rows[RANKER]["minus_best_fixed"] = gain.mean().item()
    if num_photos > 1:
        rows[RANKER]["standard_error"] = (gain.std() / num_photos**0.5).item()
    return rows
