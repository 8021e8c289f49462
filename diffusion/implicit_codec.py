"""The codec of any size: a decoder that is a function of continuous positions.

Shapes: B batch, Z latent channels, H/W pixels, h/w latent cells.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn

from diffusion.codecs import LatentCodec, Window, strip_windows


class ImplicitCodec(LatentCodec):
    """An autoencoder whose decoder is a function of continuous positions, so that any size is decoded, row by row.

    Args:
        vae: the encoder; frozen here.
        decoder: has `prepare(latent)`, of the unscaled latent (B, Z, h, w), computed once whatever the size, and
            `window(prepared, size_px, window)` -> that window of the image of that size, (B, C, H, W), about in [0, 1],
            and `patches(prepared, sizes, windows)` of several; each pixel depends on the latent and its position in the whole alone. Frozen here.
    """

    def __init__(self, vae: AutoencoderKL | AutoencoderTiny, decoder: nn.Module) -> None:
        super().__init__(vae)
        self.decoder: Any = decoder.eval().requires_grad_(False)

    def decode(self, latent: Tensor, size_px: tuple[int, int] | None = None) -> Tensor:
        size = size_px or self._own_size(latent)
        with torch.autocast(latent.device.type, enabled=False):
            return self.decoder.window(self._prepared(latent), size, (0, 0, *size)).float()

    def patches(self, latent: Tensor, sizes: Sequence[tuple[int, int]], windows: Sequence[Window]) -> Tensor:
        with torch.autocast(latent.device.type, enabled=False):
            return self.decoder.patches(self._prepared(latent), sizes, windows).float()

    @torch.no_grad()
    def decode_strips(
        self, latent: Tensor, size_px: tuple[int, int] | None = None, window: Window | None = None
    ) -> Iterator[Tensor]:
        size = size_px or self._own_size(latent)
        device = latent.device.type
        with torch.autocast(device, enabled=False):
            prepared = self._prepared(latent)
        for strip in strip_windows(window or (0, 0, *size)):
            with torch.autocast(device, enabled=False):
                rows = self.decoder.window(prepared, size, strip).float().clamp(0, 1)
            yield rows

    def _own_size(self, latent: Tensor) -> tuple[int, int]:
        return latent.shape[-2] * self.downscale, latent.shape[-1] * self.downscale

    def _prepared(self, latent: Tensor) -> Any:
        dtype = next(self.decoder.parameters(), latent).dtype
        return self.decoder.prepare((latent / self.scale_factor).to(dtype))
