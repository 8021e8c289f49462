"""Translation by a walk from the source latent to the target latent, as in latent bridge matching (Chadebec et al. 2025).

Shapes: B batch, H/W pixels, Z latent channels, h/w latent cells.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.base import Batch
from lightning_modules.diffusion import Step
from lightning_modules.latent_bridge import LatentBridge
from lightning_modules.translation import Translator


class TranslateBridge(Translator, LatentBridge):
    """Learns the way from the latent of the source to that of the target, on a path with or without noise.

    Latent bridge matching is a path with a little noise (`path.noise_scale` 0.005), `prediction` difference, the four timesteps
    of a walk in four steps, and the perceptual distance of a decoded crop with weight 10.

    Args:
        perceptual: distance (image, reference) -> (B,) of pictures in [0, 1], frozen; None leaves the term out.
        perceptual_weight: of that term.
        crop_px: side of the square crop that is decoded for it; at most the whole picture.
        settings: as Translator and LatentBridge.
    """

    def __init__(
        self,
        *,
        perceptual: nn.Module | None = None,
        perceptual_weight: float = 10.0,
        crop_px: int = 512,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if crop_px < self.codec.downscale:
            raise ValueError(
                f"module.crop_px is {crop_px}, less than a latent cell; set it to {self.codec.downscale} or more"
            )
        self.perceptual, self.perceptual_weight, self.crop_px = perceptual, perceptual_weight, crop_px
        self.widen((self.sees_source + len(self.conds)) * self.codec.num_channels)
        self.train_only(self.parts.unet)

    def full_precision_parts(self) -> list[nn.Module]:
        return super().full_precision_parts() + ([] if self.perceptual is None else [self.perceptual])

    def source(self, batch: Batch) -> Tensor | None:
        return self.latents(batch, ["source"])

    def condition(self, batch: Batch) -> dict[str, Any]:
        return self.told(batch, self.prompts(batch))

    def told(self, batch: Batch, prompts: list[str]) -> dict[str, Any]:
        """The condition: text states, and the latents that the U-Net sees beside x_t."""
        names = ["source"] * self.sees_source + list(self.conds)
        return {"text": self.embed(prompts), "beside": self.latents(batch, names)}

    def further_losses(self, step: Step) -> dict[str, Tensor]:
        """The perceptual distance between a crop of the decoded clean estimate and of the target."""
        if self.perceptual is None:
            return {}
        image, f = self.images(step.batch), self.codec.downscale
        height, width = step.clean.shape[-2:]
        cells = min(self.crop_px // f, height, width)
        corners = self.draws(step.batch).uniform("crop", 2) * [height - cells + 1, width - cells + 1]
        boxes = [(int(top), int(left), cells) for top, left in corners]
        decoded = self.codec.decode(_cut(step.clean_estimate, boxes))
        target = _cut(image, [(top * f, left * f, side * f) for top, left, side in boxes])
        return {"perceptual": self.perceptual_weight * self.perceptual(decoded, target).mean()}

    def draw_target(self, batch: Batch, prompts: list[str], numbers: list[int], options: Any) -> Tensor:
        source = self.codec.encode(batch["source"])
        denoise = self.guided(self.told(batch | {"encodings": {}}, prompts), options)
        generators = self.generators(numbers, options.seed)
        return self.draw(denoise, source, num_steps=options.steps, generators=generators)


def _cut(pictures: Tensor, boxes: Sequence[tuple[int, int, int]]) -> Tensor:
    """A square of each picture (B, C, H, W), by its top, left and side."""
    parts = zip(pictures, boxes, strict=True)
    return torch.stack([part[:, top : top + side, left : left + side] for part, (top, left, side) in parts])
