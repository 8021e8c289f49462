"""Generation at any size: one latent of the training size, decoded at the size that is asked for (Kim and Kim 2024)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_modules.any_size import SizeOptions, Strips, as_result, other_sizes
from lightning_modules.base import Batch, Results
from lightning_modules.latent_diffusion import LatentDiffusion
from lightning_modules.options import PromptOptions
from lightning_modules.stable_diffusion import StableDiffusion


@dataclass(frozen=True, kw_only=True)
class AnyGenerationOptions(SizeOptions, PromptOptions):
    """Sampling and the size of the result, beside the training size unless told otherwise."""

    default_scale: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        SizeOptions.__post_init__(self)
        PromptOptions.__post_init__(self)


class ArbitraryScaleGeneration(LatentDiffusion):
    """Latent diffusion whose latents have the training size, with the aspect of the result, whatever its size.

    So the same noise shows the same content at every size.

    Args:
        settings: as LatentDiffusion; `decoder` is that of any size.
    """

    Options = AnyGenerationOptions
    pipeline = None

    def check_options(self, options: Any, *, is_folder: bool) -> None:
        StableDiffusion.check_options(self, options, is_folder=is_folder)

    def drawn_px(self, size_px: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the picture whose latent is drawn for a result of (H, W)."""
        share = (self.working_px or min(size_px)) / min(size_px)
        return self.on_grid((round(size_px[0] * share), round(size_px[1] * share)))

    @torch.no_grad()
    def draw_latents(
        self, prompts: list[str], numbers: list[int], size_px: tuple[int, int], options: Any
    ) -> Tensor:
        """Latents (B, Z, h, w) of B prompts for pictures of (H, W)."""
        denoise = self.guided({"text": self.embed(prompts)}, options)
        return self.draw_from_noise(denoise, self.drawn_px(size_px), numbers, options)

    def generate(
        self, prompts: list[str], numbers: list[int], size_px: tuple[int, int], options: Any
    ) -> Tensor:
        return self.codec.to_picture(self.draw_latents(prompts, numbers, size_px, options), size_px)

    @torch.no_grad()
    def results(self, batch: Batch, options: Any) -> Results:
        side = self.working_px or self.grid_px()
        size_px = options.size_px(batch["image"].shape[-2:] if "image" in batch else (side, side))
        window, samples = options.window(size_px), []
        for number in range(options.num_samples):
            numbers = self.sample_numbers(batch, number)
            latent = self.draw_latents([options.prompt] * len(numbers), numbers, size_px, options)
            samples.append(as_result(self.strips(latent)(size_px, window), window))
        return {"image": samples[0] if len(samples) == 1 else samples}

    @torch.no_grad()
    def rows(self, batch: Batch, options: Any) -> Iterator[tuple[str, Results]]:
        """As LatentDiffusion, with the same latents at other sizes."""
        if options.scale is not None or options.crop is not None:
            raise ValueError(
                "scale= and crop= have no effect here; set size=, or leave it out for the photos' size"
            )
        image = batch["image"]
        prompts = [options.prompt or text for text in self.captions(batch)]
        size_px = options.size or (image.shape[-2], image.shape[-1])
        strips = self.strips(self.draw_latents(prompts, self.sample_numbers(batch), size_px, options))
        drawn, *others = (strips.whole(size) for size in (size_px, *other_sizes(size_px)))
        yield "sample from caption", {"image": drawn, "other_sizes": others}
        yield "autoencoder's ceiling", {"image": self.codec.to_picture(self.codec.encode(image))}

    def strips(self, latent: Tensor) -> Strips:
        """The picture of a latent (B, Z, h, w) at any size."""
        smallest = (latent.shape[-2], latent.shape[-1])
        return Strips(lambda size_px, window: self.codec.decode_strips(latent, size_px, window), smallest)

    def exported(self) -> dict[str, Any]:
        decoder = getattr(self.codec, "decoder", None)
        return super().exported() | ({} if decoder is None else {"decoder": decoder})
