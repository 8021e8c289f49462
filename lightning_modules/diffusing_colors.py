"""Colour as a walk from the grey latent to the colour latent (Diffusing Colors, Zabari et al. 2023), on any bridge.

Shapes: B batch, H/W pixels, Z latent channels, h/w latent cells.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from color.lab import grey_image, lightness
from diffusion.bridge_objectives import BridgeObjective, BridgePrediction, BridgeWeighting, Norm
from diffusion.bridge_paths import BridgePath
from diffusion.bridge_samplers import BridgeSampler
from lightning_modules.colorizer import Colorizer
from lightning_modules.latent import Condition
from lightning_modules.requests import DrawSettings


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
        settings: as Colorizer.

    Raises:
        ValueError: a sampler that cannot walk the path.
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
        **settings: Any,
    ) -> None:
        super().__init__(sampler=sampler, **settings)
        sampler.check(path)
        self.path = path
        self.objective = BridgeObjective(path, prediction=prediction, weighting=bridge_weighting, norm=norm)
        self.sees_source = sees_source
        if sees_source:
            widen_input(self.parts.unet, 2 * self.codec.num_channels)
        self.freeze_all_but_trained()

    def trained_networks(self) -> list[nn.Module]:
        return [self.parts.unet]

    def losses(
        self, batch: dict[str, Any], captions: list[str], clean: Tensor, noise: Tensor, timestep: Tensor
    ) -> Tensor:
        source = self.source_latents(batch)
        noisy = self.path.corrupt(clean, source, noise, timestep)
        pred = self.denoise(noisy, timestep, Condition(self.embed(captions), source))
        return self.objective.loss(pred, clean, source, noise, timestep)

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
        given = noisy
        if self.sees_source:
            assert condition.cond is not None
            given = torch.cat([noisy, condition.cond], dim=1)
        return self.parts.unet(given, timestep, condition.context).sample

    def draw_colors(
        self, given: Tensor, captions: list[str], sample_ids: list[int], settings: DrawSettings | None = None
    ) -> Tensor:
        settings = settings or DrawSettings()
        if not any(captions) and not settings.negative_prompt:
            settings = replace(settings, guidance_scale=1.0)  # both branches would be the same
        source = self.codec.encode(grey_image(given))
        generators = self.sources(sample_ids, settings.seed)
        return self.draw_from(source, generators, Condition(self.embed(captions), source), settings)

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
