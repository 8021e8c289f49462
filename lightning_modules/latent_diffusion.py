"""Stage 2 of latent diffusion: the U-Net over latents (Rombach et al. 2022, Sec. 3.2-3.3)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_modules.base import Batch, Results
from lightning_modules.options import PromptOptions, option, size
from lightning_modules.stable_diffusion import StableDiffusion
from tasks.generation import Generation


@dataclass(frozen=True, kw_only=True)
class GenerationOptions(PromptOptions):
    """Sampling and the size of the result."""

    size: tuple[int, int] | None = option(
        "HxW of the result, multiples of the model's grid; the run's own if not given", None, parse=size
    )


class LatentDiffusion(StableDiffusion):
    """Generates images from noise, unconditionally or from a prompt; without an autoencoder in pixel space.

    Args:
        train_text_encoder: learn the text encoder jointly with the U-Net (the embedded one starts from scratch).
        settings: as StableDiffusion.
    """

    Options: ClassVar[type] = GenerationOptions
    task = Generation
    takes_input = False
    one_sample = True
    pipeline: str | None = "StableDiffusionPipeline"

    def __init__(self, *, train_text_encoder: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        text_encoder = self.parts.text_encoder
        if train_text_encoder and text_encoder is None:
            raise ValueError(
                "module.train_text_encoder=true, but the model has no text encoder; set it to false"
            )
        if self.guidance_scale != 1 and text_encoder is None:
            raise ValueError(
                f"module.guidance_scale={self.guidance_scale} has no effect on an unconditional model; set it to 1"
            )
        text = [text_encoder] if train_text_encoder and text_encoder is not None else []
        self.train_only(self.parts.unet, *text)

    def check_options(self, options: Any, *, is_folder: bool) -> None:
        super().check_options(options, is_folder=is_folder)
        if options.size and options.size != self.on_grid(options.size):
            asked, near = ("x".join(map(str, pair)) for pair in (options.size, self.on_grid(options.size)))
            raise ValueError(
                f"size={asked} is not on the grid of {self.grid_px()} pixels that the model draws on; give size={near}"
            )

    def on_grid(self, size_px: tuple[int, int]) -> tuple[int, int]:
        """(H, W) rounded to the model's grid."""
        grid = self.grid_px()
        height, width = (max(grid, round(side / grid) * grid) for side in size_px)
        return height, width

    @torch.no_grad()
    def generate(
        self, prompts: list[str], numbers: list[int], size_px: tuple[int, int], options: Any
    ) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] of B prompts; H and W as asked, rounded to the model's grid."""
        denoise = self.guided({"text": self.embed(prompts)}, options)
        return self.codec.to_picture(self.draw_from_noise(denoise, self.on_grid(size_px), numbers, options))

    def results(self, batch: Batch, options: Any) -> Results:
        count, num = len(batch["index"]), options.num_samples
        own = batch["image"].shape[-2:] if "image" in batch else [self.working_px or self.grid_px()] * 2
        numbers = [n for k in range(num) for n in self.sample_numbers(batch, k)]
        drawn = self.generate([options.prompt] * count * num, numbers, options.size or tuple(own), options)
        return {"image": drawn if num == 1 else drawn.split(count)}

    @torch.no_grad()
    def rows(self, batch: Batch, options: Any) -> Iterator[tuple[str, Results]]:
        image = batch["image"]
        prompts = [options.prompt or text for text in self.captions(batch)]
        size_px = options.size or tuple(image.shape[-2:])
        drawn = self.generate(prompts, self.sample_numbers(batch), size_px, options)
        yield "sample from caption", {"image": drawn}
        yield "autoencoder's ceiling", {"image": self.codec.to_picture(self.codec.encode(image))}
