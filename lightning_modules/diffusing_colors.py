"""Colour as a walk from the grey latent to the colour latent (Diffusing Colors, Zabari et al. 2023), on any bridge.

Shapes: B batch, H/W pixels, Z latent channels, h/w latent cells.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from color.hints import NUM_HINT_CHANNELS, NUM_RANDOM, hint_map, known_map, no_hints, random_known
from color.lab import grey_image, lightness, rgb_to_lab
from color.regions import is_grey_outside, touched_cells
from diffusion.bridge_objectives import BridgeObjective, BridgePrediction, BridgeWeighting, Norm
from diffusion.bridge_paths import BridgePath
from diffusion.bridge_samplers import AfterStep, BridgeSampler
from diffusion.seeding import Stream, generators, keyed_uniform, randn
from lightning_modules.colorizer import Colorizer
from lightning_modules.latent import Condition
from lightning_modules.requests import DrawSettings, Edits


class DiffusingColors(Colorizer):
    """Learns the way from the latent of the grey photo (the source) to that of the colour photo.

    Without noise on the path each photo and prompt has one result, near the mean of the likely colours. With noise
    (`path.noise_scale`) it is a stochastic bridge and results differ by seed.

    Args:
        path: from the colour latent to the grey latent.
        sampler: how the way is walked back.
        prediction: what the U-Net outputs: delta, difference, sample or grad.
        bridge_weighting: of the timesteps: uniform or i2sb.
        norm: of the error: l2 or l1.
        sees_source: give the U-Net the grey latent too, in further input channels that start at zero weight; on a noisy
            path the latent at hand shows the grey one only in part.
        hint_prob: probability that a training sample shows some patches of its true colour, which teaches the U-Net to
            take a user's hints, in three further input channels; 0 leaves the channels out.
        source_prob: probability that a training sample stands at the source itself, the rest being uniform on the path.
            Every walk begins there, with the one guess that decides the hues; one step off it, on a path without noise,
            what is left of the true colours only has to be amplified, which teaches nothing about that guess.
        settings: as Colorizer.

    Raises:
        ValueError: a sampler that cannot walk the path, no probability, or a weighting of the path of noise.
    """

    path: BridgePath  # type: ignore[assignment]
    objective: BridgeObjective  # type: ignore[assignment]

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
        unused = sorted({"weighting", "gamma"} & settings.keys())
        if unused:
            raise ValueError(
                f"module.{unused[0]} has no effect on a bridge; leave it out, or set module.bridge_weighting"
            )
        super().__init__(sampler=sampler, **settings)
        for name, value in (("hint_prob", hint_prob), ("source_prob", source_prob)):
            if not 0 <= value <= 1:
                raise ValueError(f"module.{name} is {value}; expected a probability in [0, 1]")
        sampler.check(path)
        self.path = path
        self.objective = BridgeObjective(path, prediction=prediction, weighting=bridge_weighting, norm=norm)
        self.sees_source = sees_source
        self.hint_prob, self.source_prob = hint_prob, source_prob
        num_extra = sees_source * self.codec.num_channels + (hint_prob > 0) * NUM_HINT_CHANNELS
        widen_input(self.parts.unet, self.codec.num_channels + num_extra)
        self.freeze_all_but_trained()

    def trained_networks(self) -> list[nn.Module]:
        return [self.parts.unet]

    def timesteps(self, uniform: np.ndarray) -> Tensor:
        """int64 (B,) from numbers in [0, 1); a share `source_prob` of them is the source's.

        In validation too: the best checkpoint is the one of the lowest loss, and an even one would hardly see the source.
        """
        spread = np.clip((uniform - self.source_prob) / max(1 - self.source_prob, 1e-12), 0, 1 - 1e-12)
        last = (self.path.num_timesteps - 0.5) / self.path.num_timesteps
        return super().timesteps(np.where(uniform < self.source_prob, last, spread))

    def losses(
        self, batch: dict[str, Any], captions: list[str], clean: Tensor, noise: Tensor, timestep: Tensor
    ) -> Tensor:
        source = self.source_latents(batch)
        noisy = self.path.corrupt(clean, source, noise, timestep)
        hints = self.training_hints(batch["image"]) if self.training and self.hint_prob else None
        pred = self.denoise(noisy, timestep, self.walk_condition(captions, source, hints))
        return self.objective.loss(pred, clean, source, noise, timestep)

    def walk_condition(self, captions: list[str], source: Tensor, hints: Tensor | None = None) -> Condition:
        """The prompts, and what the U-Net sees beside x_t: the source (B, Z, h, w) and the hints (B, 3, h, w)."""
        seen = [source] if self.sees_source else []
        if self.hint_prob:
            size = (source.shape[-2], source.shape[-1])
            seen.append(no_hints(len(source), size, device=source.device) if hints is None else hints)
        return Condition(self.embed(captions), torch.cat(seen, dim=1) if seen else None)

    def training_hints(self, image: Tensor) -> Tensor:
        """Random patches of the true colours for a share `hint_prob` of the images (B, 3, H, W), none for the others."""
        key, positions = self.step_key(Stream.HINT), self.batch_positions(len(image))
        numbers = NUM_RANDOM + 1
        sample = (positions[:, None] * numbers + np.arange(numbers)).ravel()
        uniform = keyed_uniform(*key, sample=sample).reshape(len(image), numbers)
        height, width = image.shape[-2:]
        known = random_known(uniform[:, 1:], (height, width))
        known[uniform[:, 0] >= self.hint_prob] = 0
        size = (height // self.codec.downscale, width // self.codec.downscale)
        return hint_map(rgb_to_lab(image)[:, 1:], known.to(image.device), size=size)

    def source_latents(self, batch: dict[str, Any]) -> Tensor:
        """Latents (B, Z, h, w) of the grey photos, from the cached moments where the batch has them."""
        if "source_moments" in batch:
            return self.codec.sample(batch["source_moments"])
        return self.codec.encode(self.source_image(batch["image"]))

    @staticmethod
    def source_image(image: Tensor) -> Tensor:
        """The grey photos that the walk starts from; callbacks.latent_cache keeps their latents."""
        return grey_image(lightness(image))

    def denoise(self, noisy: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        given = noisy if condition.cond is None else torch.cat([noisy, condition.cond], dim=1)
        return self.parts.unet(given, timestep, condition.context).sample

    def draw_colors(
        self, given: Tensor, captions: list[str], sample_ids: list[int], settings: DrawSettings | None = None
    ) -> Tensor:
        source = self.codec.encode(grey_image(given))
        condition = self.walk_condition(captions, source)
        return self.walk_back(source, captions, sample_ids, settings or DrawSettings(), condition)

    def draw_edited(
        self, image: Tensor, captions: list[str], sample_ids: list[int], settings: DrawSettings, edits: Edits
    ) -> Tensor:
        """As Colorizer.draw_edited: hints reach the U-Net, and outside the region the latents keep to the photo's own.

        Of a photo that is grey outside all is drawn, as without a region.
        """
        self.check_edits(hints=edits.hints is not None, start=edits.start)
        size = len(sample_ids)
        source = self.codec.encode(self.source_image(image)).expand(size, -1, -1, -1)
        hints = None
        if edits.hints is not None:
            cells = (source.shape[-2], source.shape[-1])
            hints = known_map(edits.hints, size=cells).to(source.device).expand(size, -1, -1, -1)
        walk = self.edited_walk(image, source, sample_ids, settings.seed, edits)
        condition = self.walk_condition(captions, source, hints)
        return self.walk_back(source, captions, sample_ids, settings, condition, **walk)

    def walk_back(
        self,
        source: Tensor,
        captions: list[str],
        sample_ids: list[int],
        settings: DrawSettings,
        condition: Condition,
        **walk: Any,
    ) -> Tensor:
        """The colour latents (B, Z, h, w) at the end of the walk from grey latents; `walk` as in `draw_from`."""
        if condition.context is None or not (any(captions) or settings.negative_prompt):
            settings = replace(settings, guidance_scale=1.0)  # both branches would be the same
        return self.draw_from(source, self.sources(sample_ids, settings.seed), condition, settings, **walk)

    def edited_walk(
        self, image: Tensor, source: Tensor, sample_ids: list[int], seed: int, edits: Edits
    ) -> dict[str, Any]:
        """The sampler's arguments for a walk that starts at the photo's own colours or leaves a region."""
        if edits.region is None and edits.start == 1:
            return {}
        own = self.codec.encode(image).expand_as(source)
        walk: dict[str, Any] = {} if edits.start == 1 else {"start": edits.start, "current": own}
        if edits.region is not None:
            inside = touched_cells(edits.region, (source.shape[-2], source.shape[-1])).to(source.device)
            # The decoder dulls colours among grey latents: of a photo that is grey outside all is drawn.
            inside = inside.maximum(is_grey_outside(image, edits.region).float().view(-1, 1, 1, 1))
            # Noise of its own: the sampler's draws inside the region stay what they are without one.
            outside = generators(seed, Stream.REGION, sample=sample_ids, device=source.device)
            walk["after_step"] = self.keep_outside(own, source, inside, randn(source.shape[1:], outside))
            if edits.start < 1:
                level = self.path.level(self.path.nearest(edits.start))
                walk["current"] = torch.lerp(self.path.mix(own, source, level), own, inside)
        return walk

    def keep_outside(self, own: Tensor, source: Tensor, inside: Tensor, noise: Tensor) -> AfterStep:
        """Holds what lies outside a region on the path from the photo's own latents to the source.

        Args:
            own: latents (B, Z, h, w) of the photo with the colours that it has.
            source: (B, Z, h, w).
            inside: (1 or B, 1, h, w), 1 in the region's cells and 0 outside.
            noise: (B, Z, h, w), the same at every level.
        """

        def keep(x: Tensor, level: float) -> Tensor:
            known = self.path.mix(own, source, level) + self.path.std(level) * noise
            return torch.lerp(known, x, inside)

        return keep

    def check_edits(self, *, hints: bool, start: float) -> None:
        if hints and not self.hint_prob:
            raise ValueError(
                "hints= needs a model that has learned from hints, and this one was trained with module.hint_prob=0; give a "
                "prompt=, or train with module.hint_prob=0.5"
            )
        if start != 1 and self.path.num_timesteps == 1:
            raise ValueError(
                f"start={start:g} needs a walk of many steps, and this model goes from grey to colour in one "
                "(module.path.num_timesteps=1); leave it out"
            )

    def is_deterministic(self, settings: DrawSettings, edits: Edits) -> bool:
        num_steps = settings.num_steps or self.sampler.num_steps
        # A single step from the source adds no noise: it ends on the clean estimate.
        return self.path.noise_scale == 0 or (num_steps == 1 and edits.start == 1)

    def export(self, folder: Path) -> None:
        """Writes the parts as diffusers loads them one by one; no pipeline of diffusers walks a bridge."""
        self.parts.save(folder)

    def load_export(self, folder: Path) -> None:
        unet = UNet2DConditionModel.from_pretrained(folder / "unet", use_safetensors=True)
        self.parts.unet.load_state_dict(unet.state_dict())


def widen_input(unet: UNet2DConditionModel, num_channels: int) -> None:
    """Gives a U-Net more input channels, in place; the new ones have zero weight, so that nothing changes at first."""
    before = unet.conv_in
    extra = num_channels - before.in_channels
    if extra <= 0:
        return
    conv = nn.Conv2d(num_channels, before.out_channels, before.kernel_size, padding=before.padding)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[:, : before.in_channels] = before.weight
    conv.bias = before.bias
    unet.conv_in = conv.to(before.weight.dtype)
    unet.register_to_config(in_channels=num_channels)
