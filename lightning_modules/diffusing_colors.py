"""Diffusing Colors (Zabari et al. 2023) and stochastic bridges: colour as a walk from the grey latent to the colour latent.

Shapes: B batch, S samples, H/W pixels, Z latent channels, h/w latent cells.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from color.hints import NUM_HINT_CHANNELS, NUM_RANDOM, no_hints, random_hints
from color.lab import grey_image, lightness
from color.regions import inside_cells
from diffusion.bridge_samplers import keep_outside
from diffusion.samplers import AfterStep
from diffusion.seeding import randn
from lightning_modules.base import Batch, Results
from lightning_modules.colorizer import Colorizer
from lightning_modules.latent_bridge import LatentBridge
from lightning_modules.walk_options import WalkOptions


class DiffusingColors(Colorizer, LatentBridge):
    """Learns the way from the latent of the grey photo (the source) to that of the colour photo.

    Without noise on the path each photo and prompt has one result, near the mean of the likely colours. With noise
    (`path.noise_scale`) it is a stochastic bridge and results differ by seed.

    Args:
        hint_prob: probability that a training sample shows some patches of its true colour, which teaches the U-Net to
            take a user's hints, in three further input channels; 0 leaves the channels out.
        settings: as Colorizer and LatentBridge, whose path leads from the colour latent to the grey latent; at the source,
            where every walk begins, one guess decides the hues, and on the rest of the path colours are only amplified.
    """

    Options = WalkOptions

    def __init__(self, *, hint_prob: float = 0.0, **settings: Any) -> None:
        if not 0 <= hint_prob <= 1:
            raise ValueError(f"module.hint_prob is {hint_prob}; expected a probability in [0, 1]")
        super().__init__(**settings)
        self.hint_prob = hint_prob
        self.widen(self.sees_source * self.codec.num_channels + (hint_prob > 0) * NUM_HINT_CHANNELS)
        self.train_only(self.parts.unet)

    # ---- training

    def encodings(self) -> dict[str, Callable[[Tensor], Tensor]]:
        return super().encodings() | {
            "source": lambda image: self.codec.moments(grey_image(lightness(image)))
        }

    def source(self, batch: Batch) -> Tensor:
        return self.codec.sample(self.moments(batch, "source"))

    def condition(self, batch: Batch) -> dict[str, Any]:
        hints = None
        if self.training and self.hint_prob:
            uniform = self.draws(batch).uniform("hint", NUM_RANDOM + 1)
            hints = random_hints(batch["image"], uniform, prob=self.hint_prob, downscale=self.codec.downscale)
        return self.told(self.prompts(batch), self.source(batch), hints)

    def told(self, prompts: list[str], source: Tensor, hints: Tensor | None = None) -> dict[str, Any]:
        """The condition: text states, and beside x_t the source (B, Z, h, w) and the hints (B or 1, 3, h, w)."""
        beside = [source] if self.sees_source else []
        if self.hint_prob:
            known = no_hints(1, (source.shape[-2], source.shape[-1])) if hints is None else hints
            beside.append(known.to(source.device).expand(len(source), -1, -1, -1))
        return {"text": self.embed(prompts), "beside": torch.cat(beside, dim=1) if beside else None}

    # ---- drawing

    def draw_colors(self, batch: Batch, prompts: list[str], numbers: list[int], options: Any) -> Tensor:
        """As Colorizer; hints reach the U-Net, and outside the region the latents keep to the photo's own."""
        image = batch["image"]
        source = self.codec.encode(grey_image(lightness(image))).expand(len(prompts), -1, -1, -1)
        hints = options.hint_map(batch["size_px"], source.shape[-2:]) if options.hints else None
        condition = self.told(prompts, source, hints)
        if condition["text"] is None or not (any(prompts) or options.negative_prompt):
            options = replace(options, guidance=1.0)  # both branches would be the same
        first, after_step = self.edited_walk(image, source, batch.get("region"), numbers, options)
        walk = {"source": source, "start": options.start, "after_step": after_step}
        generators = self.generators(numbers, options.seed)
        denoise = self.guided(condition, options)
        return self.draw(denoise, first, num_steps=options.steps, generators=generators, **walk)

    def edited_walk(
        self, image: Tensor, source: Tensor, region: Tensor | None, numbers: list[int], options: Any
    ) -> tuple[Tensor, AfterStep | None]:
        """Where a walk begins (S, Z, h, w), and what keeps it to the photo's own colours outside a region."""
        if region is None and options.start == 1:
            return source, None
        own = self.codec.encode(image).expand_as(source)
        if region is None:
            return own, None
        # Noise of its own: the sampler's draws inside the region stay what they are without one.
        noise = randn(source.shape[1:], self.generators(numbers, options.seed, "region"))
        cells = inside_cells(image, region, (source.shape[-2], source.shape[-1])).to(source.device)
        keep = keep_outside(self.path, own, source, cells, noise)
        level = self.path.level(self.path.nearest(options.start))
        faded = torch.lerp(self.path.mix(own, source, level), own, cells)
        return (source if options.start == 1 else faded), keep

    def rows(self, batch: Batch, options: Any) -> Iterator[tuple[str, Results]]:
        if options.start != 1:
            raise ValueError(
                f"start={options.start:g} begins at the photo's own colours, which are what is measured against; leave it out"
            )
        return super().rows(batch, options)

    def check_options(self, options: Any, *, is_folder: bool) -> None:
        super().check_options(options, is_folder=is_folder)
        options.check_walk(self.path, takes_hints=self.hint_prob > 0)
