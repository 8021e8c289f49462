"""Colorization in Lab with ControlNet (Zhang et al. 2023): lightness in, a colour latent out, the base frozen.

Shapes: B batch, H/W pixels, Z latent channels, h/w latent cells.
"""

from typing import Any

import torch
from diffusers import ModelMixin, SchedulerMixin
from torch import Tensor

from color.lab import lightness
from lightning_modules.base import Batch
from lightning_modules.colorizer import Colorizer
from lightning_modules.controlled import Controlled
from networks.rgb_condition import takes_grey, takes_rgb

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


class ColorizeControlNet(Colorizer, Controlled):
    """Learns a ControlNet whose condition is lightness; samples are moved onto the input's own lightness.

    Args:
        settings: as Colorizer and Controlled.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(num_cond_channels=1, **settings)
        takes_grey(self.controlnet)

    def condition(self, batch: Batch) -> dict[str, Any]:
        return super().condition(batch) | {"cond": lightness(batch["image"])}

    def draw_colors(self, batch: Batch, prompts: list[str], numbers: list[int], options: Any) -> Tensor:
        cond = lightness(batch["image"]).expand(len(prompts), -1, -1, -1)
        denoise = self.guided({"text": self.embed(prompts), "cond": cond}, options)
        return self.draw_from_noise(denoise, (cond.shape[-2], cond.shape[-1]), numbers, options)

    @torch.no_grad()
    def published(self) -> dict[str, ModelMixin | SchedulerMixin]:
        parts = super().published()
        return parts | {"controlnet": takes_rgb(parts["controlnet"])}

    def usage(self) -> str:
        grid, steps = self.grid_px(), getattr(self.sampler, "num_steps", 20)
        side = -(-(self.working_px or grid) // grid) * grid
        return _USAGE.format(side=side, grid=grid, steps=steps, scale=self.cond_scale)
