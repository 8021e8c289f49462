"""Diffusing Colors (Zabari et al. 2023) and stochastic bridges: colour as a walk from the grey latent to the colour latent.

Shapes: B batch, S samples, H/W pixels, Z latent channels, h/w latent cells.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from color.hints import NUM_HINT_CHANNELS, NUM_RANDOM, no_hints, random_hints
from color.lab import grey_image, lightness
from color.regions import inside_cells
from diffusion.bridge_objectives import BridgeObjective, BridgePrediction, BridgeWeighting, Norm
from diffusion.bridge_paths import BridgePath
from diffusion.bridge_samplers import BridgeSampler, keep_outside
from diffusion.samplers import AfterStep
from diffusion.seeding import randn
from lightning_modules.base import Batch, Results
from lightning_modules.colorizer import Colorizer
from lightning_modules.walk_options import WalkOptions
from networks.widened import widen_input


class DiffusingColors(Colorizer):
    """Learns the way from the latent of the grey photo (the source) to that of the colour photo.

    Without noise on the path each photo and prompt has one result, near the mean of the likely colours. With noise
    (`path.noise_scale`) it is a stochastic bridge and results differ by seed.

    Args:
        path: from the colour latent to the grey latent.
        sampler: how the way is walked back.
        prediction, bridge_weighting, norm: as BridgeObjective, whose weighting is the second.
        sees_source: give the U-Net the grey latent too, in further input channels that start at zero weight; on a noisy
            path the latent at hand shows the grey one only in part.
        hint_prob: probability that a training sample shows some patches of its true colour, which teaches the U-Net to
            take a user's hints, in three further input channels; 0 leaves the channels out.
        source_prob: probability that a training sample stands at the source itself, where every walk begins with the one
            guess that decides the hues; the rest is uniform on the path, where colours only have to be amplified.
        settings: as Colorizer.
    """

    Options = WalkOptions
    path: BridgePath

    def __init__(
        self,
        *,
        path: BridgePath,
        sampler: BridgeSampler,
        prediction: BridgePrediction = "delta",
        bridge_weighting: BridgeWeighting = "uniform",
        norm: Norm = "l2",
        sees_source: bool = False,
        hint_prob: float = 0.0,
        source_prob: float = 0.0,
        **settings: Any,
    ) -> None:
        if unused := sorted({"weighting", "gamma"} & settings.keys()):
            raise ValueError(
                f"module.{unused[0]} has no effect on a bridge; leave it out, or set module.bridge_weighting"
            )
        for name, value in (("hint_prob", hint_prob), ("source_prob", source_prob)):
            if not 0 <= value <= 1:
                raise ValueError(f"module.{name} is {value}; expected a probability in [0, 1]")
        sampler.check(path)
        objective = BridgeObjective(path, prediction=prediction, weighting=bridge_weighting, norm=norm)
        super().__init__(path=path, objective=objective, sampler=sampler, **settings)
        self.sees_source, self.hint_prob, self.source_prob = sees_source, hint_prob, source_prob
        num_extra = sees_source * self.codec.num_channels + (hint_prob > 0) * NUM_HINT_CHANNELS
        widen_input(self.parts.unet, self.codec.num_channels + num_extra)
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

    def denoise(self, x_t: Tensor, timestep: Tensor, condition: dict[str, Any]) -> Tensor:
        beside = condition["beside"]
        given = x_t if beside is None else torch.cat([x_t, beside], dim=1)
        return super().denoise(given, timestep, condition)

    def timesteps(self, uniform: np.ndarray) -> Tensor:
        """int64 (B,) from numbers in [0, 1); a share `source_prob` of them is the source's.

        In validation too: the best checkpoint is the one of the lowest loss, and an even one would hardly see the source.
        """
        spread = np.clip((uniform - self.source_prob) / max(1 - self.source_prob, 1e-12), 0, 1 - 1e-12)
        last = (self.path.num_timesteps - 0.5) / self.path.num_timesteps
        return super().timesteps(np.where(uniform < self.source_prob, last, spread))

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
        options.check_walk(self.path, self.sampler, takes_hints=self.hint_prob > 0)
