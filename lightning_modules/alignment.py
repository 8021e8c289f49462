"""The alignment of diffusion with a decoder of any size: its latents are taught by the pictures that they become.

Kim and Kim 2024 (arXiv 2403.10255, Eq. 7 to 9). Shapes: B batch, Z latent channels, h/w latent cells, P patch.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor

from lightning_modules.any_size import random_patches
from lightning_modules.arbitrary_scale_upscaling import ArbitraryScaleUpscaling
from lightning_modules.diffusion import Step
from networks.foreign_models import load_weights


class Alignment(ArbitraryScaleUpscaling):
    """Upscaling by diffusion with a second loss: the clean estimate decoded, against the picture, at a random size and patch.

    The weight of the image loss, the signal-to-noise ratio, is clamped, since at the first steps it is about 1e3, and the
    estimate's rounding error with it; the decoding is in float32 whatever the trainer's precision. The decoder is frozen: the
    gradient passes through it to the U-Net.

    Args:
        start: folder that export.py wrote of a run of arbitrary_scale_upscaling, from whose U-Net the training goes on; None =
            a new one, which then learns both losses from the beginning.
        image_weight: of the image loss (1 in the paper).
        max_weight: the largest signal-to-noise ratio that weights it.
        patch_px: P; sizes are uniform from P, or from the latent's where that is larger, to the training image's.
        settings: as ArbitraryScaleUpscaling.
    """

    def __init__(
        self,
        *,
        start: str | None = None,
        image_weight: float = 1.0,
        max_weight: float = 5.0,
        patch_px: int = 32,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if start is not None:
            if not Path(start, "unet").is_dir():
                raise FileNotFoundError(
                    f"module.start={start} has no folder unet/; give the folder that export.py wrote of a run of "
                    "experiment=arbitrary_scale_upscaling"
                )
            found = load_weights(UNet2DModel, start, subfolder="unet", use_safetensors=True)
            self.unet.load_state_dict(found.state_dict())
        self.image_weight, self.max_weight, self.patch_px = image_weight, max_weight, patch_px

    def further_losses(self, step: Step) -> dict[str, Tensor]:
        estimate = step.clean_estimate
        smallest = max(self.patch_px, estimate.shape[-1])
        sizes, windows, patches = random_patches(
            step.batch["image"], self.draws(step.batch), smallest=smallest, patch_px=self.patch_px
        )
        with torch.autocast(self.device.type, enabled=False):
            decoded = self.codec.patches(estimate.float(), sizes, windows)
        # In [-1, 1], as the pictures of the paper.
        error = (2 * (decoded - patches)).square().flatten(1).mean(1)
        weight = self.path.snr(step.timestep).clamp(max=self.max_weight)
        return {"image": self.image_weight * (weight * error).mean()}
