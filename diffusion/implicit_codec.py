"""The codec of any size: a decoder that is a function of continuous positions.

Shapes: B batch, Z latent channels, H/W pixels, h/w latent cells.
"""

from collections.abc import Iterator

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn

from diffusion.codecs import STRIP_PX, LatentCodec, Window


class ImplicitCodec(LatentCodec):
    """An autoencoder whose decoder is a function of continuous positions, so that any size is decoded, row by row.

    Args:
        vae: the encoder; frozen here.
        decoder: (scaled latent (B, Z, h, w), size_px, window) -> that window of the image of that size, (B, C, H, W),
            about in [0, 1]; each pixel depends on the latent and its position in the whole alone. Frozen here.
    """

    def __init__(self, vae: AutoencoderKL | AutoencoderTiny, decoder: nn.Module) -> None:
        super().__init__(vae)
        self.decoder = decoder.eval().requires_grad_(False)

    def decode(self, latent: Tensor, size_px: tuple[int, int] | None = None) -> Tensor:
        size = size_px or self._own_size(latent)
        return self._window(latent, size, (0, 0, *size))

    @torch.no_grad()
    def decode_strips(
        self, latent: Tensor, size_px: tuple[int, int] | None = None, window: Window | None = None
    ) -> Iterator[Tensor]:
        size = size_px or self._own_size(latent)
        top, left, height, width = window or (0, 0, *size)
        for start in range(top, top + height, STRIP_PX):
            rows = min(STRIP_PX, top + height - start)
            yield self._window(latent, size, (start, left, rows, width)).clamp(0, 1)

    def _own_size(self, latent: Tensor) -> tuple[int, int]:
        return latent.shape[-2] * self.downscale, latent.shape[-1] * self.downscale

    def _window(self, latent: Tensor, size_px: tuple[int, int], window: Window) -> Tensor:
        dtype = next(self.decoder.parameters(), latent).dtype
        with torch.autocast(latent.device.type, enabled=False):
            return self.decoder(latent.to(dtype), size_px, window).float()
