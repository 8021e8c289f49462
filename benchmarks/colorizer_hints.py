"""Drawing with the true colours of some patches of each photo at hand, as a user's hints would give them.

Shapes: N photos, H/W pixels.
"""

import numpy as np
import torch
from torch import Tensor

from benchmarks.colorizer_photos import Draw, Photos
from color.hints import NUM_RANDOM, hint_map, random_known
from color.lab import lightness, rgb_to_lab
from diffusion.seeding import Stream, keyed_uniform
from lightning_modules.colorizer import Colorizer
from lightning_modules.diffusing_colors import DiffusingColors
from lightning_modules.requests import DrawSettings


def check_hints(module: Colorizer, source: str) -> None:
    """Raises ValueError for a run that has not learned to take hints."""
    if not (isinstance(module, DiffusingColors) and module.hint_prob > 0):
        raise ValueError(
            f"run={source} has not learned to take hints; give a run of diffusing_colors that was trained with "
            "module.hint_prob=0.5 or another probability above 0"
        )


def hinted_draw(module: DiffusingColors, num_patches: int) -> Draw:
    """Draws with the true colours of random patches at hand; those of fewer patches are among those of more."""

    @torch.no_grad()
    def draw(photos: Photos, seed: int) -> Tensor:
        image = photos.image.to(module.device)
        given = lightness(image)
        source = module.codec.encode(module.source_image(image))
        known = patches(photos, num_patches, seed).to(image.device)
        hints = hint_map(rgb_to_lab(image)[:, 1:], known, size=(source.shape[-2], source.shape[-1]))
        condition = module.walk_condition(photos.captions, source, hints)
        # Without prompts both branches of guidance would be the same.
        settings = DrawSettings(seed=seed, guidance_scale=1.0)
        latent = module.draw_from(source, module.sources(photos.ids, seed), condition, settings)
        return module.finish(given, latent, settings, photos.names)

    return draw


def patches(photos: Photos, num_patches: int, seed: int) -> Tensor:
    """Masks (N, 1, H, W) of random patches, keyed by the photo and the number of the patch."""
    known = torch.zeros_like(photos.image[:, :1])
    for number in range(num_patches):
        sample = (np.array(photos.ids)[:, None] * NUM_RANDOM + np.arange(NUM_RANDOM)).ravel()
        uniform = keyed_uniform(seed, Stream.HINT, number, sample=sample).reshape(-1, NUM_RANDOM)
        uniform[:, 0] = 0  # a single patch
        known = torch.maximum(known, random_known(uniform, (known.shape[-2], known.shape[-1])))
    return known
