"""What the methods with a ControlNet share (Zhang et al. 2023): a trained copy of the encoder that steers a frozen base."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import ControlNetModel, ModelMixin, SchedulerMixin
from torch import Tensor
from torch.nn import functional as F

from diffusion.choices import check_literal
from lightning_modules.stable_diffusion import StableDiffusion

GuidanceDrops = Literal["prompt", "cond", "both"]


@dataclass(frozen=True)
class Further:
    """One of the ControlNets that act at once."""

    network: ControlNetModel
    cond: Tensor  # (B, C, H, W)
    scale: float
    mid_only: bool = False


@dataclass(frozen=True)
class Control:
    """How the conditions act in one evaluation of the network.

    `guess` scales the residuals from 0.1 at the finest to 1 at the middle block, the authors' guess mode.
    """

    scale: float | None = None  # of the module's own residuals; None = its cond_scale
    guess: bool = False
    further: Sequence[Further] = ()


class Controlled(StableDiffusion):
    """Learns a ControlNet; a method says its condition: a dict with the text states and `cond` (B, C, H, W).

    Args:
        num_cond_channels: C.
        cond_channels: widths of the condition's encoder, one halving between each two; None fits the codec.
        train_decoder: also train the base's decoder (the authors' sd_locked=False).
        mid_control_only: use the middle block's residual alone.
        guidance_drops: what the negative branch of guidance lacks; "prompt" has no effect where prompts are empty.
        cond_scale: multiplies the ControlNet's residuals.
        settings: as StableDiffusion.
    """

    pipeline: str | None = "StableDiffusionControlNetPipeline"

    def __init__(
        self,
        *,
        num_cond_channels: int,
        cond_channels: list[int] | None = None,
        train_decoder: bool = False,
        mid_control_only: bool = False,
        guidance_drops: GuidanceDrops = "both",
        cond_scale: float = 1.0,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        check_literal("module.guidance_drops", guidance_drops, GuidanceDrops)
        halvings = self.codec.downscale.bit_length() - 1
        widths = cond_channels or [16, 32, 96, 256][: halvings + 1]
        if len(widths) != halvings + 1:
            raise ValueError(
                f"module.cond_channels has {len(widths)} widths, but the codec halves {halvings} times; give {halvings + 1} "
                "widths, one more, or null"
            )
        unet = self.parts.unet
        self.controlnet = ControlNetModel.from_unet(
            unet, conditioning_channels=num_cond_channels, conditioning_embedding_out_channels=tuple(widths)
        )
        self.mid_control_only, self.cond_scale = mid_control_only, cond_scale
        self.guidance_drops: GuidanceDrops = guidance_drops
        decoder = [unet.up_blocks, unet.conv_norm_out, unet.conv_out] if train_decoder else []
        self.train_only(self.controlnet, *decoder)

    def denoise(
        self, x_t: Tensor, timestep: Tensor, condition: dict[str, Any], control: Control | None = None
    ) -> Tensor:
        """The base's prediction; the first samples, that have a `cond`, get the ControlNet's residuals, the others none."""
        text, cond, control = condition["text"], condition["cond"], control or Control()
        num = len(cond)
        if num == 0:
            return self._base(x_t, timestep, text)
        given = (x_t[:num], timestep[:num], None if text is None else text[:num])
        scale = self.cond_scale if control.scale is None else control.scale
        own = Further(self.controlnet, cond, scale, self.mid_control_only)
        down, mid = _residuals(own, *given, guess=control.guess)
        for other in control.further:
            more = _residuals(other, *given, guess=control.guess)
            down, mid = [a + b for a, b in zip(down, more[0], strict=True)], mid + more[1]
        dtype = self.parts.unet.dtype
        return self._base(
            x_t,
            timestep,
            text,
            down_block_additional_residuals=[padded(residual, len(x_t)).to(dtype) for residual in down],
            mid_block_additional_residual=padded(mid, len(x_t)).to(dtype),
        )

    def _base(self, x_t: Tensor, timestep: Tensor, text: Tensor | None, **residuals: Any) -> Tensor:
        dtype = self.parts.unet.dtype
        states = None if text is None else text.to(dtype)
        return self.parts.unet(x_t.to(dtype), timestep, states, **residuals).sample

    def guides_by_text(self) -> bool:
        return self.guidance_drops == "prompt"

    def negative(self, condition: dict[str, Any], prompt: str) -> dict[str, Any]:
        if self.guidance_drops == "prompt":
            return super().negative(condition, prompt)
        same_text = condition["text"] is None or (self.guidance_drops == "cond" and not prompt)
        away = condition if same_text else super().negative(condition, prompt)
        return away | {"cond": condition["cond"][:0]}

    def exported(self) -> dict[str, ModelMixin | SchedulerMixin]:
        return super().exported() | {"controlnet": self.controlnet}

    @torch.no_grad()
    def published(self) -> dict[str, ModelMixin | SchedulerMixin]:
        controlnet = deepcopy(self.controlnet)
        for zeroed in controlnet.controlnet_down_blocks.parameters() if self.mid_control_only else ():
            zeroed.zero_()  # of the pipeline all residuals reach the base
        return self.exported() | {"controlnet": controlnet}


def _residuals(
    one: Further, x_t: Tensor, timestep: Tensor, text: Tensor | None, *, guess: bool
) -> tuple[list[Tensor], Tensor]:
    """What a ControlNet adds to the skip connections and to the middle block."""
    # Where the negative branch of guidance has the condition too, it is there for each image twice.
    times = len(x_t) // len(one.cond)
    down, mid = one.network(
        x_t,
        timestep,
        encoder_hidden_states=text,
        controlnet_cond=one.cond.repeat(times, 1, 1, 1) if times > 1 else one.cond,
        conditioning_scale=one.scale,
        guess_mode=guess,
        return_dict=False,
    )
    if one.mid_only:
        down = [residual * 0 for residual in down]  # in the graph still: DDP waits for every gradient
    return down, mid


def padded(residual: Tensor, count: int) -> Tensor:
    """A tensor (B, C, h, w) with zero samples behind, up to `count`."""
    missing = count - len(residual)
    return F.pad(residual, (0, 0) * 3 + (0, missing)) if missing else residual
