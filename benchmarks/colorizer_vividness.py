"""What a ranker of vividness gains over one chroma scale for all photos.

Shapes: K chroma scales, N photos, H/W pixels.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from benchmarks.colorizer_figures import Figures, Spread, spread
from benchmarks.colorizer_photos import BATCH_SIZE, Photos, eight_bit, plain_draw, seeds_that_matter
from color.lab import lightness
from lightning_modules.colorizer import Colorizer
from lightning_modules.requests import DrawSettings
from metrics.color import ColorfulnessVariant

BEST_FIXED, TUNED = "best fixed scale", "tuned fixed scale"
RANKER, NEAREST = "ranker", "nearest candidate of each photo"

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
    tuning: Photos,
) -> dict[str, dict[str, Spread]]:
    """Figures of every fixed scale, the best of these, that of the tuning photos, the ranker's picks and the nearest."""
    seeds = seeds_that_matter(plain_draw(module), photos, seeds)
    tuned = best_scale(module, tuning, seeds, scales, figures.variant)
    found = [
        picked(candidates(module, photos, seed, scales), scores, scales, figures, tuned) for seed in seeds
    ]
    return {
        name: {key: spread([entry[name][key] for entry in found]) for key in row}
        for name, row in found[0].items()
    }


def best_scale(
    module: Colorizer, photos: Photos, seeds: list[int], scales: list[float], variant: ColorfulnessVariant
) -> int:
    """The number of the scale whose results are nearest to the truth's colourfulness, in the mean over the photos."""
    figures = Figures(eight_bit(photos.image), variant=variant)
    means = [distances(candidates(module, photos, seed, scales), figures).mean(1) for seed in seeds]
    return int(torch.stack(means).mean(0).argmin())


def distances(images: Tensor, figures: Figures) -> Tensor:
    """Of each candidate's colourfulness to that of the true photo: float64 (K, N)."""
    return torch.stack([(figures.colorfulness(c) - figures.true_colorfulness).abs() for c in images])


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
    images: Tensor, scores: Scores, scales: Sequence[float], figures: Figures, tuned: int
) -> dict[str, dict[str, float]]:
    """What a ranker gains over a fixed scale.

    Args:
        images: candidates uint8 (K, N, 3, H, W).
        scores: of one scale's candidates, all photos at once.
        scales: K chroma scales.
        figures: measures them.
        tuned: number of the scale that is best on other photos.

    Returns:
        By row: mean distance of each photo's colourfulness to the truth's, CIEDE2000, and the mean scale taken. The
        row of the ranker has the mean of its distance minus that of the tuned and of the best fixed scale, paired by
        photo, each with its standard error.
    """
    distance = distances(images, figures)
    error = torch.stack([figures.delta_e(c) for c in images])
    scale = torch.tensor(scales, dtype=torch.float64)[:, None].expand_as(distance)

    def row(choice: Tensor) -> dict[str, float]:
        taken = [t.gather(0, choice[None]).mean().item() for t in (distance, error, scale)]
        return dict(zip(("colorfulness_distance", "delta_e2000", "chroma_scale"), taken, strict=True))

    num_photos = images.shape[1]
    rows = {f"{s:g}": row(torch.full((num_photos,), k)) for k, s in enumerate(scales)}
    best = int(distance.mean(1).argmin())
    choice = torch.stack([scores(c.float() / 255) for c in images]).argmax(0).cpu()
    fixed = {TUNED: tuned, BEST_FIXED: best}
    rows |= {name: row(torch.full((num_photos,), k)) for name, k in fixed.items()}
    rows |= {RANKER: row(choice), NEAREST: row(distance.argmin(0))}
    for name, k in fixed.items():
        key = f"minus_{name.replace(' ', '_')}"
        gain = distance.gather(0, choice[None])[0] - distance[k]
        rows[RANKER][key] = gain.mean().item()
        if num_photos > 1:
            rows[RANKER][f"{key}_se"] = (gain.std() / num_photos**0.5).item()
    return rows
