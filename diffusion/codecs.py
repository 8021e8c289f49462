"""Codecs: the one place where images in [0, 1] meet the tensors that are diffused.

Shapes: B batch, C image channels, Z latent channels, H/W pixels, h/w latent cells.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn
from torch.nn import functional as F

STRIP_PX = 256
# The posterior of a codec without one: `sample` turns it into no noise.
_NO_LOG_VARIANCE = -30.0

# Top, left, height, width of a region in pixels of the decoded size.
Window = tuple[int, int, int, int]


class Codec(nn.Module):
    """Encodes images and decodes to any size; a subclass says `moments` and `decode`.

    Attributes:
        num_channels: Z.
        downscale: pixels along one side of a latent cell (f).
        scale_factor: multiplies the moments' mean, so that latents have a standard deviation near one.
        bounds: the range of clean latents, to which samplers clip their clean estimates; None = unbounded.
    """

    num_channels: int
    downscale: int
    scale_factor: float = 1.0
    bounds: tuple[float, float] | None = None

    def moments(self, image: Tensor) -> Tensor:
        """Unscaled posterior mean and log variance of image (B, C, H, W) in [0, 1], stacked: (B, 2Z, h, w)."""
        raise TypeError(f"{type(self).__name__} does not say how images are encoded")

    def decode(self, latent: Tensor, size_px: tuple[int, int] | None = None) -> Tensor:
        """The image float32 (B, C, H, W), about in [0, 1] and not clamped, of a latent (B, Z, h, w); gradients reach it.

        `size_px` is (H, W) of the image; None = the latent's own, f times (h, w).
        """
        raise TypeError(f"{type(self).__name__} does not say how latents are decoded")

    def sample(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """A scaled latent (B, Z, h, w) of moments (B, 2Z, h, w): the mean, or with noise (B, Z, h, w) a draw."""
        mean, log_variance = moments.chunk(2, dim=1)
        latent = mean if noise is None else mean + (0.5 * log_variance).exp() * noise
        return latent * self.scale_factor

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """The scaled latent (B, Z, h, w) of image (B, C, H, W) in [0, 1]: `sample` of its `moments`."""
        return self.sample(self.moments(image), noise)

    def latent_shape(self, size_px: tuple[int, int]) -> tuple[int, int, int]:
        """(Z, h, w) of images of (H, W) pixels."""
        return self.num_channels, size_px[0] // self.downscale, size_px[1] // self.downscale

    def patches(self, latent: Tensor, sizes: Sequence[tuple[int, int]], windows: Sequence[Window]) -> Tensor:
        """Of each latent a window (B, C, R, S) of its image of a size, as `decode`; all windows of one shape."""
        found = []
        for one, size, (top, left, height, width) in zip(latent, sizes, windows, strict=True):
            found.append(self.decode(one[None], size)[..., top : top + height, left : left + width])
        return torch.cat(found)

    @torch.no_grad()
    def to_picture(self, latent: Tensor, size_px: tuple[int, int] | None = None) -> Tensor:
        """As `decode`, clamped to [0, 1] and without gradient."""
        return self.decode(latent, size_px).clamp(0, 1)

    @torch.no_grad()
    def decode_strips(
        self, latent: Tensor, size_px: tuple[int, int] | None = None, window: Window | None = None
    ) -> Iterator[Tensor]:
        """Pictures (B, C, up to 256 rows, W) from top to bottom; joined, the window of `to_picture`.

        A codec that decodes row by row overrides this, so that memory does not grow with the height.
        """
        picture = self.to_picture(latent, size_px)
        top, left, height, width = window or (0, 0, *picture.shape[-2:])
        yield from picture[..., top : top + height, left : left + width].split(STRIP_PX, dim=-2)


class LatentCodec(Codec):
    """A frozen autoencoder of diffusers, whose `config.scaling_factor` scales; it resamples to another size (bicubic).

    Example:
        >>> codec = LatentCodec(AutoencoderTiny())
        >>> codec.decode(codec.encode(torch.rand(1, 3, 16, 16)), (24, 20)).shape
        torch.Size([1, 3, 24, 20])
    """

    def __init__(self, vae: AutoencoderKL | AutoencoderTiny) -> None:
        super().__init__()
        self.vae: AutoencoderKL | AutoencoderTiny = vae.eval().requires_grad_(False)
        self.num_channels = int(vae.config.latent_channels)
        self.downscale = downscale(vae)

    @property
    def scale_factor(self) -> float:  # type: ignore[override]
        return float(self.vae.config.scaling_factor)

    @torch.no_grad()
    def moments(self, image: Tensor) -> Tensor:
        check_size(image, self.downscale)
        # In the weights' own precision, whatever the trainer's: a cached latent equals one encoded on the fly.
        with torch.autocast(image.device.type, enabled=False):
            encoded = self.vae.encode((image * 2 - 1).to(self.vae.dtype))
        if hasattr(encoded, "latent_dist"):
            return torch.cat([encoded.latent_dist.mean, encoded.latent_dist.logvar], dim=1).float()
        return _without_variance(encoded.latents.float())

    def decode(self, latent: Tensor, size_px: tuple[int, int] | None = None) -> Tensor:
        with torch.autocast(latent.device.type, enabled=False):
            decoded = self.vae.decode((latent / self.scale_factor).to(self.vae.dtype)).sample
        return _resized(decoded.float() / 2 + 0.5, size_px)


class IdentityCodec(Codec):
    """Pixel space behind the same calls: the latent is the image mapped to [-1, 1], of C channels or mask classes."""

    downscale = 1
    bounds = (-1.0, 1.0)

    def __init__(self, num_channels: int = 3) -> None:
        super().__init__()
        self.num_channels = num_channels

    def moments(self, image: Tensor) -> Tensor:
        return _without_variance(image.float() * 2 - 1)

    def sample(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        return moments.chunk(2, dim=1)[0]

    def decode(self, latent: Tensor, size_px: tuple[int, int] | None = None) -> Tensor:
        return _resized(latent.float() / 2 + 0.5, size_px)


def downscale(vae: AutoencoderKL | AutoencoderTiny) -> int:
    """Pixels along one side of a latent cell of an autoencoder."""
    blocks = vae.config.get("down_block_types") or vae.config["encoder_block_out_channels"]
    return int(2 ** (len(blocks) - 1))


def overflows_in_half(vae: Any) -> bool:
    """Whether an autoencoder must not run in float16, as Stable Diffusion's (their configs say so: force_upcast)."""
    return vae is not None and bool(vae.config.get("force_upcast", False))


def strip_windows(window: Window) -> Iterator[Window]:
    """A window cut into windows of at most 256 rows, from top to bottom."""
    top, left, height, width = window
    for start in range(top, top + height, STRIP_PX):
        yield start, left, min(STRIP_PX, top + height - start), width


def check_size(image: Tensor, cell_px: int) -> None:
    """Raises a ValueError for an image (..., H, W) that whole cells do not cover: its edge would be lost."""
    height, width = image.shape[-2:]
    if height % cell_px or width % cell_px:
        lower = min(height, width) // cell_px * cell_px
        raise ValueError(
            f"an image of {height}x{width} pixels does not fit the model, whose cells are {cell_px} pixels wide; set datamodule.size_px to a multiple of {cell_px}, such as {lower or cell_px} or "
            f"{(lower or cell_px) + cell_px}"
        )


def _without_variance(mean: Tensor) -> Tensor:
    return torch.cat([mean, torch.full_like(mean, _NO_LOG_VARIANCE)], dim=1)


def _resized(image: Tensor, size_px: tuple[int, int] | None) -> Tensor:
    if size_px is None or tuple(image.shape[-2:]) == tuple(size_px):
        return image
    return F.interpolate(image, tuple(size_px), mode="bicubic", align_corners=False, antialias=True)
