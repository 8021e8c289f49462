"""Masks behind a codec of pictures: each three classes are the colours of one picture.

Shapes: B batch, N class channels, G pictures, Z latent channels of one picture, H/W pixels, h/w latent cells.
"""

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn import functional as F

from diffusion.codecs import Codec


class MaskCodec(Codec):
    """Diffuses masks in the latents of an autoencoder of pictures, as SDSeg does (Lin et al. 2024, Sec. 2.2).

    One class channel is a grey picture, whose decoded colours are averaged; of several, three at a time are a picture.

    Args:
        codec: of pictures (B, 3, H, W).
        num_classes: N, without those that are not diffused.

    Example:
        >>> from diffusers import AutoencoderTiny
        >>> from diffusion.codecs import LatentCodec
        >>> codec = MaskCodec(LatentCodec(AutoencoderTiny()), 5)
        >>> latent = codec.encode(torch.rand(1, 5, 16, 16))
        >>> latent.shape, codec.decode(latent).shape
        (torch.Size([1, 8, 2, 2]), torch.Size([1, 5, 16, 16]))
    """

    def __init__(self, codec: Codec, num_classes: int) -> None:
        super().__init__()
        self.codec, self.num_classes = codec, num_classes
        self.num_pictures = -(-num_classes // 3)
        self.num_channels = self.num_pictures * codec.num_channels
        self.downscale, self.bounds = codec.downscale, codec.bounds

    @property
    def scale_factor(self) -> float:  # type: ignore[override]
        return self.codec.scale_factor

    def moments(self, image: Tensor) -> Tensor:
        """As `Codec.moments`, of class channels (B, N, H, W) in [0, 1]."""
        if self.num_classes == 1:
            pictures = repeat(image, "b 1 h w -> b c h w", c=3)
        else:
            padded = F.pad(image, (0, 0, 0, 0, 0, 3 * self.num_pictures - self.num_classes))
            pictures = rearrange(padded, "b (g c) h w -> (b g) c h w", c=3)
        parts = self.codec.moments(pictures).chunk(2, dim=1)
        joined = [rearrange(part, "(b g) z h w -> b (g z) h w", g=self.num_pictures) for part in parts]
        return torch.cat(joined, dim=1)

    def decode(self, latent: Tensor, size_px: tuple[int, int] | None = None) -> Tensor:
        """As `Codec.decode`, to class channels (B, N, H, W)."""
        pictures = self.codec.decode(
            rearrange(latent, "b (g z) h w -> (b g) z h w", g=self.num_pictures), size_px
        )
        if self.num_classes == 1:
            return pictures.mean(1, keepdim=True)
        return rearrange(pictures, "(b g) c h w -> b (g c) h w", g=self.num_pictures)[:, : self.num_classes]
