"""Upscaling to any size by diffusion: one latent under the small picture, decoded at the size that is asked for.

Kim and Kim 2024 (arXiv 2403.10255). Shapes: B batch, Z latent channels, h/w latent cells, N side of the training images.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn

from diffusion.codecs import LatentCodec, overflows_in_half
from diffusion.implicit_codec import ImplicitCodec
from diffusion.objectives import GaussianObjective, Prediction
from diffusion.paths import GaussianPath
from lightning_modules.any_size import AnySize, SizeOptions, Strips
from lightning_modules.base import Batch, Results
from lightning_modules.diffusion import DiffusionModule
from lightning_modules.options import SamplingOptions, option
from lightning_modules.windows import by_windows, check_overlap
from metrics.resolution import resize_bicubic

# Of the scale in the network's embedding, whose frequencies are made for timesteps.
_LARGEST_LABEL = 1000.0


@dataclass(frozen=True, kw_only=True)
class UpscalingOptions(SizeOptions, SamplingOptions):
    """Size of the result, sampling, and the tiles of a large latent.

    Raises:
        ValueError: as SizeOptions and SamplingOptions; an overlap outside [0, 1).
    """

    overlap: float = option(
        "share of a tile in common with the next, where the latent is larger than in training", 0.5
    )

    def __post_init__(self) -> None:
        SizeOptions.__post_init__(self)
        SamplingOptions.__post_init__(self)
        check_overlap(self.overlap)


class ArbitraryScaleUpscaling(AnySize, DiffusionModule):
    """Draws the latent of a picture `draw_scale` times as large as the small one, and decodes it at any size.

    The size that is asked for changes the decoding alone, so that all sizes show one content. The small picture is resized to
    the drawn one's size, encoded and concatenated; the scale between them, uniform in training, is embedded.

    Args:
        unet: diffusers' UNet2DModel of 2Z channels in and Z out with class_embed_type=timestep.
        vae: frozen; makes the latents.
        decoder: of any size on them (networks.implicit_decoder); None = the autoencoder's own, whose picture is resampled.
        path, prediction: as GaussianObjective.
        max_scale: the scales of training are uniform from 1 to this.
        draw_scale: at most max_scale.
        shared: as DiffusionModule.
    """

    Options = UpscalingOptions
    path: GaussianPath

    def __init__(
        self,
        *,
        unet: Any,
        vae: AutoencoderKL | AutoencoderTiny,
        decoder: nn.Module | None = None,
        path: GaussianPath,
        prediction: Prediction = "v_prediction",
        max_scale: float = 8.0,
        draw_scale: float = 4.0,
        **shared: Any,
    ) -> None:
        if not 1 < draw_scale <= max_scale:
            raise ValueError(
                f"module.draw_scale={draw_scale:g} is not above 1 and at most max_scale={max_scale:g}"
            )
        codec: LatentCodec | ImplicitCodec = (
            LatentCodec(vae) if decoder is None else ImplicitCodec(vae, decoder)
        )
        super().__init__(
            codec=codec, path=path, objective=GaussianObjective(path, prediction=prediction), **shared
        )
        self.unet, self.max_scale, self.draw_scale = unet, max_scale, draw_scale
        self.train_only(unet)

    def full_precision_parts(self) -> list[nn.Module]:
        """The decoder, which alignment takes gradients through, and an autoencoder that overflows in float16."""
        vae, decoder = self.codec.vae, getattr(self.codec, "decoder", None)
        kept = decoder is None or (self.frozen_dtype() == "float16" and overflows_in_half(vae))
        return [*([vae] if kept else []), *([] if decoder is None else [decoder])]

    def condition(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The small pictures' latents (B, Z, h, w) and their scales (B,), drawn."""
        image, size_px = batch["image"], (batch["image"].shape[-2], batch["image"].shape[-1])
        scales = 1 + self.draws(batch).uniform("scale") * (self.max_scale - 1)
        low = [
            resize_bicubic(one[None], (max(1, round(size_px[0] / s)), max(1, round(size_px[1] / s))))
            for one, s in zip(image, scales, strict=True)
        ]
        resized = torch.cat([resize_bicubic(one, size_px) for one in low])
        return self.codec.encode(resized), torch.from_numpy(scales).float().to(self.device)

    def denoise(self, x_t: Tensor, timestep: Tensor, condition: tuple[Tensor, Tensor]) -> Tensor:
        low, scale = condition
        label = _LARGEST_LABEL * scale.log() / math.log(self.max_scale)
        return self.unet(torch.cat([x_t, low], dim=1), timestep, class_labels=label).sample

    def grid_px(self) -> int:
        """Sides of the drawn pictures are multiples of this many pixels."""
        return self.codec.downscale * 2 ** (len(self.unet.config.block_out_channels) - 1)

    @torch.no_grad()
    def draw_latent(self, low: Tensor, numbers: list[int], options: Any) -> Tensor:
        """Latents (B, Z, h, w) of the pictures of which (B, 3, h, w) in [0, 1] are small ones."""
        grid = self.grid_px()
        height, width = (max(1, round(side * self.draw_scale / grid)) * grid for side in low.shape[-2:])
        condition = self.codec.encode(resize_bicubic(low, (height, width)))
        # A small input is stretched to the grid: the network is told the scale that it really sees.
        told = math.sqrt(height * width / (low.shape[-2] * low.shape[-1]))
        scale = torch.full((len(low),), min(max(told, 1.0), self.max_scale), device=self.device)
        side = (self.working_px or max(height, width)) // self.codec.downscale

        def denoise(x_t: Tensor, timestep: Tensor) -> Tensor:
            if max(x_t.shape[-2:]) <= side:
                return self.denoise(x_t, timestep, (condition, scale))

            def tile(parts: Tensor, places: list[tuple[int, int]]) -> Tensor:
                rows = [row for row, _ in places]
                x_part, low_part = parts.chunk(2, dim=1)
                return self.denoise(x_part, timestep[rows], (low_part, scale[rows]))[None]

            # Tiles are blended at every step (MultiDiffusion, Bar-Tal et al. 2023), so that they agree on one content.
            both = torch.cat([x_t, condition], dim=1)
            cells = grid // self.codec.downscale
            found = by_windows(
                tile, both, window=side, overlap=options.overlap, grid_px=cells, share=self.codec.downscale**2
            )
            return found[0]

        return self.draw_from_noise(denoise, (height, width), numbers, options)

    def strips_of(self, low: Tensor, numbers: list[int], options: Any) -> Strips:
        latent = self.draw_latent(low, numbers, options)
        return Strips(
            lambda size_px, window: self.codec.decode_strips(latent, size_px, window),
            (latent.shape[-2], latent.shape[-1]),
        )

    @torch.no_grad()
    def rows(self, batch: Batch, options: Any) -> Iterator[tuple[str, Results]]:
        yield from super().rows(batch, options)
        image = self.images(batch)
        size_px = (image.shape[-2], image.shape[-1])
        grid = self.codec.downscale
        whole = resize_bicubic(
            image, (math.ceil(size_px[0] / grid) * grid, math.ceil(size_px[1] / grid) * grid)
        )
        yield "autoencoder's ceiling", {"image": self.codec.to_picture(self.codec.encode(whole), size_px)}

    def exported(self) -> dict[str, Any]:
        vae, decoder = getattr(self.codec, "vae", None), getattr(self.codec, "decoder", None)
        parts = {"unet": self.unet, "vae": vae, "decoder": decoder}
        return {name: part for name, part in parts.items() if part is not None}
