"""Colorization in Lab with ControlNet (Zhang et al. 2023): lightness in, a colour latent out, the base frozen.

Shapes: B batch, H/W pixels, Z latent channels, h/w latent cells.
"""

from copy import deepcopy
from typing import Any, Literal

import torch
from diffusers import ControlNetModel, ModelMixin, SchedulerMixin
from torch import Tensor
from torch.nn import functional as F

from color.lab import lightness
from diffusion.choices import check_literal
from lightning_modules.base import Batch
from lightning_modules.colorizer import Colorizer
from networks.rgb_condition import takes_grey, takes_rgb

GuidanceDrops = Literal["prompt", "cond", "both"]

_USAGE = """With diffusers' pipeline the condition is lightness, L* of Lab, as a grey picture; of the drawn picture only
the colour counts:

```python
import numpy as np
from diffusers import StableDiffusionControlNetPipeline
from PIL import Image
from skimage.color import lab2rgb, rgb2lab

pipe = StableDiffusionControlNetPipeline.from_pretrained(FOLDER)
photo = Image.open("photo.jpg").convert("RGB").resize(({side}, {side}))  # sides are multiples of {grid}
star = rgb2lab(np.asarray(photo))[..., 0]
cond = Image.fromarray((star * 2.55).round().astype("uint8"))
drawn = pipe(
    "", image=cond, num_inference_steps={steps}, guidance_scale=1.0, controlnet_conditioning_scale={scale}
).images[0]
lab = np.dstack([star, rgb2lab(np.asarray(drawn))[..., 1:]])
Image.fromarray((lab2rgb(lab) * 255).round().astype("uint8")).save("coloured.png")
```

The pipeline's guidance keeps the condition on both branches, as module.guidance_drops=prompt does here.
"""


class ColorizeControlNet(Colorizer):
    """Learns a ControlNet whose condition is lightness; samples are moved onto the input's own lightness.

    Args:
        cond_channels: widths of the condition's encoder, one halving between each two; None fits the codec.
        train_decoder: also train the base's decoder (the authors' sd_locked=False).
        mid_control_only: use the middle block's residual alone.
        guidance_drops: what the negative branch of guidance lacks; "prompt" has no effect where prompts are empty.
        cond_scale: multiplies the ControlNet's residuals.
        settings: as Colorizer.
    """

    pipeline = "StableDiffusionControlNetPipeline"

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
            unet, conditioning_channels=1, conditioning_embedding_out_channels=tuple(widths)
        )
        takes_grey(self.controlnet)
        self.mid_control_only, self.cond_scale = mid_control_only, cond_scale
        self.guidance_drops: GuidanceDrops = guidance_drops
        decoder = [unet.up_blocks, unet.conv_norm_out, unet.conv_out] if train_decoder else []
        self.train_only(self.controlnet, *decoder)

    def condition(self, batch: Batch) -> dict[str, Any]:
        return super().condition(batch) | {"cond": lightness(batch["image"])}

    def denoise(self, x_t: Tensor, timestep: Tensor, condition: dict[str, Any]) -> Tensor:
        """The base's prediction; the first samples, that have a `cond`, get the ControlNet's residuals, the others none."""
        text, cond = condition["text"], condition["cond"]
        num = len(cond)
        down, mid = self.controlnet(
            x_t[:num],
            timestep[:num],
            encoder_hidden_states=None if text is None else text[:num],
            controlnet_cond=cond,
            conditioning_scale=self.cond_scale,
            return_dict=False,
        )
        if self.mid_control_only:
            down = [residual * 0 for residual in down]  # in the graph still: DDP waits for every gradient
        dtype = self.parts.unet.dtype
        return self.parts.unet(
            x_t.to(dtype),
            timestep,
            None if text is None else text.to(dtype),
            down_block_additional_residuals=[padded(residual, len(x_t)).to(dtype) for residual in down],
            mid_block_additional_residual=padded(mid, len(x_t)).to(dtype),
        ).sample

    def guides_by_text(self) -> bool:
        return self.guidance_drops == "prompt"

    def negative(self, condition: dict[str, Any], prompt: str) -> dict[str, Any]:
        if self.guidance_drops == "prompt":
            return super().negative(condition, prompt)
        same_text = condition["text"] is None or (self.guidance_drops == "cond" and not prompt)
        away = condition if same_text else super().negative(condition, prompt)
        return away | {"cond": condition["cond"][:0]}

    def draw_colors(self, batch: Batch, prompts: list[str], numbers: list[int], options: Any) -> Tensor:
        cond = lightness(batch["image"]).expand(len(prompts), -1, -1, -1)
        denoise = self.guided({"text": self.embed(prompts), "cond": cond}, options)
        return self.draw_from_noise(denoise, (cond.shape[-2], cond.shape[-1]), numbers, options)

    def exported(self) -> dict[str, ModelMixin | SchedulerMixin]:
        return super().exported() | {"controlnet": self.controlnet}

    @torch.no_grad()
    def published(self) -> dict[str, ModelMixin | SchedulerMixin]:
        controlnet = takes_rgb(deepcopy(self.controlnet))
        for zeroed in controlnet.controlnet_down_blocks.parameters() if self.mid_control_only else ():
            zeroed.zero_()  # of the pipeline all residuals reach the base
        return self.exported() | {"controlnet": controlnet}

    def usage(self) -> str:
        grid, steps = self.grid_px(), getattr(self.sampler, "num_steps", 20)
        side = -(-(self.working_px or grid) // grid) * grid
        return _USAGE.format(side=side, grid=grid, steps=steps, scale=self.cond_scale)


def padded(residual: Tensor, count: int) -> Tensor:
    """A tensor (B, C, h, w) with zero samples behind, up to `count`."""
    missing = count - len(residual)
    return F.pad(residual, (0, 0) * 3 + (0, missing)) if missing else residual
