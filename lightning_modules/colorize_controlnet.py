"""Colorization in Lab with ControlNet (Zhang et al. 2023): lightness in, a colour latent out, the base frozen.

Shapes: B batch, H/W pixels, Z latent channels, h/w latent cells.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import ControlNetModel
from torch import Tensor, nn

from color.lab import lightness
from lightning_modules.colorizer import Colorizer
from lightning_modules.latent import Condition
from lightning_modules.latent_diffusion import stable_diffusion_parts
from lightning_modules.requests import DrawSettings
from networks.latent_diffusion_parts import write_model_index

GuidanceDrops = Literal["prompt", "cond", "both"]


class ColorizeControlNet(Colorizer):
    """Learns a ControlNet whose condition is lightness; samples are moved onto the input's own lightness.

    Args:
        cond_channels: widths of the condition's encoder, one halving between each two; None fits the codec.
        train_decoder: also train the base's decoder ("sd_locked=False" of the authors' code).
        mid_control_only: use the middle block's residual alone.
        guidance_drops: what the negative branch of guidance lacks. With empty prompts on both branches "prompt"
            leaves guidance without effect, so that "cond" or "both" is what a colorizer without prompts needs.
        cond_scale: multiplies the ControlNet's residuals.
        settings: as Colorizer.

    Raises:
        ValueError: an unknown `guidance_drops`, or widths that do not reach the latent's size.
    """

    def __init__(
        self,
        *,
        cond_channels: list[int] | None = None,
        train_decoder: bool = False,
        mid_control_only: bool = False,
        guidance_drops: GuidanceDrops = "both",
        cond_scale: float = 1.0,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if guidance_drops not in ("prompt", "cond", "both"):
            raise ValueError(f"module.guidance_drops is '{guidance_drops}'; expected prompt, cond or both")
        halvings = self.codec.downscale.bit_length() - 1
        widths = cond_channels or [16, 32, 96, 256][: halvings + 1]
        if len(widths) != halvings + 1:
            raise ValueError(
                f"module.cond_channels has {len(widths)} widths, which halve {len(widths) - 1} times, but the codec "
                f"halves {halvings} times; give {halvings + 1} widths or null"
            )
        self.controlnet = ControlNetModel.from_unet(
            self.parts.unet, conditioning_channels=1, conditioning_embedding_out_channels=tuple(widths)
        )
        self.train_decoder = train_decoder
        self.mid_control_only = mid_control_only
        self.guidance_drops = guidance_drops
        self.cond_scale = cond_scale
        self.freeze_all_but_trained()

    def trained_networks(self) -> list[nn.Module]:
        if not self.train_decoder:
            return [self.controlnet]
        unet = self.parts.unet
        return [self.controlnet, unet.up_blocks, unet.conv_norm_out, unet.conv_out]

    def condition(self, batch: dict[str, Any], captions: list[str]) -> Condition:
        return Condition(self.embed(captions), lightness(batch["image"]))

    def denoise(self, noisy: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        return self._denoise(noisy, timestep, condition, controlled=len(noisy))

    def denoise_both(
        self, noisy: Tensor, timestep: Tensor, condition: Condition, negative: Condition
    ) -> tuple[Tensor, Tensor]:
        if self.guidance_drops == "prompt":
            return super().denoise_both(noisy, timestep, condition, negative)
        both = replace(condition, context=_cat(condition.context, negative.context))
        pred = self._denoise(noisy.repeat(2, 1, 1, 1), timestep.repeat(2), both, controlled=len(noisy))
        first, second = pred.chunk(2)
        return first, second

    def negative(self, condition: Condition, prompt: str) -> Condition:
        no_text = condition.context is None
        if self.guidance_drops != "prompt" and (no_text or (self.guidance_drops == "cond" and not prompt)):
            return condition
        return super().negative(condition, prompt)

    def _denoise(self, noisy: Tensor, timestep: Tensor, condition: Condition, *, controlled: int) -> Tensor:
        """The base's prediction; the first `controlled` samples get the ControlNet's residuals, the others none."""
        context, cond = condition.context, condition.cond
        down, mid = self.controlnet(
            noisy[:controlled],
            timestep[:controlled],
            encoder_hidden_states=None if context is None else context[:controlled],
            controlnet_cond=cond,
            conditioning_scale=self.cond_scale,
            return_dict=False,
        )
        if self.mid_control_only:
            down = [residual * 0 for residual in down]  # in the graph still: DDP waits for every gradient
        dtype, others = self.parts.unet.dtype, len(noisy) - controlled
        return self.parts.unet(
            noisy.to(dtype),
            timestep,
            None if context is None else context.to(dtype),
            down_block_additional_residuals=[_pad(residual, others).to(dtype) for residual in down],
            mid_block_additional_residual=_pad(mid, others).to(dtype),
        ).sample

    def draw_colors(
        self, given: Tensor, captions: list[str], sample_ids: list[int], settings: DrawSettings | None = None
    ) -> Tensor:
        condition = Condition(self.embed(captions), given)
        height, width = (side // self.codec.downscale for side in given.shape[-2:])
        return self.draw(condition, (self.codec.num_channels, height, width), sample_ids, settings)

    def export(self, folder: Path) -> None:
        scheduler = self.sampler.scheduler(self.objective)
        self.parts.save(folder, scheduler)
        self.controlnet.save_pretrained(folder / "controlnet")
        names = stable_diffusion_parts(self.parts, scheduler) | {
            "controlnet": ("diffusers", "ControlNetModel")
        }
        write_model_index(folder, "StableDiffusionControlNetPipeline", names)

    def load_export(self, folder: Path) -> None:
        if self.train_decoder:
            unet = type(self.parts.unet).from_pretrained(folder / "unet", use_safetensors=True)
            self.parts.unet.load_state_dict(unet.state_dict())
        controlnet = ControlNetModel.from_pretrained(folder / "controlnet", use_safetensors=True)
        self.controlnet.load_state_dict(controlnet.state_dict())


def _cat(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return None if first is None or second is None else torch.cat([first, second])


def _pad(residual: Tensor, count: int) -> Tensor:
    """The residual with `count` zero samples behind."""
    if count == 0:
        return residual
    return torch.cat([residual, residual.new_zeros(count, *residual.shape[1:])])
