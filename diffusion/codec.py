"""Latent codecs: the one place where images in [0, 1] meet the [-1, 1] of the autoencoders.

Shapes: B batch, C image channels, Z latent channels, H/W pixels, h/w latent cells.
"""

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn


class LatentCodec(nn.Module):
    """Encodes images into scaled latents and back, with a frozen autoencoder of diffusers.

    The scale factor is the autoencoder's own `config.scaling_factor`, so it travels with its weights; latents
    leave here with a standard deviation near one.

    Args:
        vae: AutoencoderKL or AutoencoderTiny; frozen here.

    Example:
        >>> from diffusers import AutoencoderTiny
        >>> codec = LatentCodec(AutoencoderTiny())
        >>> codec.decode(codec.encode(torch.rand(1, 3, 16, 16))).shape
        torch.Size([1, 3, 16, 16])
    """

    def __init__(self, vae: AutoencoderKL | AutoencoderTiny) -> None:
        super().__init__()
        self.vae: AutoencoderKL | AutoencoderTiny = vae.eval().requires_grad_(False)

    @property
    def scale_factor(self) -> float:
        """Multiplies the autoencoder's latents."""
        return float(self.vae.config.scaling_factor)

    @property
    def num_channels(self) -> int:
        """Z."""
        return int(self.vae.config.latent_channels)

    @property
    def downscale(self) -> int:
        """Pixels along one side of a latent cell (f)."""
        config = self.vae.config
        blocks = config.get("down_block_types") or config["encoder_block_out_channels"]
        return int(2 ** (len(blocks) - 1))

    @torch.no_grad()
    def moments(self, image: Tensor) -> Tensor:
        """Unscaled posterior mean and log variance of image (B, 3, H, W), stacked: (B, 2Z, h, w).

        AutoencoderTiny has no posterior: its log variance is -30, which `sample` turns into no noise.
        """
        # In the weights' own precision, whatever the trainer's: a cached latent equals one encoded on the fly.
        with torch.autocast(image.device.type, enabled=False):
            encoded = self.vae.encode((image * 2 - 1).to(self.vae.dtype))
        if hasattr(encoded, "latent_dist"):
            posterior = encoded.latent_dist
            return torch.cat([posterior.mean, posterior.logvar], dim=1).float()
        latent = encoded.latents.float()
        return torch.cat([latent, torch.full_like(latent, -30.0)], dim=1)

    def sample(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """A scaled latent (B, Z, h, w) of moments (B, 2Z, h, w): the mean, or with noise (B, Z, h, w) a draw."""
        mean, log_variance = moments.chunk(2, dim=1)
        latent = mean if noise is None else mean + (0.5 * log_variance).exp() * noise
        return latent * self.scale_factor

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """The scaled latent (B, Z, h, w) of image (B, 3, H, W) in [0, 1]: `sample` of its `moments`."""
        return self.sample(self.moments(image), noise)

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """The image float32 (B, 3, H, W), clamped to [0, 1], of a scaled latent (B, Z, h, w)."""
        with torch.autocast(latent.device.type, enabled=False):
            decoded = self.vae.decode((latent / self.scale_factor).to(self.vae.dtype)).sample
        return (decoded.float() / 2 + 0.5).clamp(0, 1)


class IdentityCodec(nn.Module):
    """Pixel space behind the same calls: the latent is the image mapped to [-1, 1].

    Args:
        num_channels: C.
    """

    scale_factor = 1.0
    downscale = 1

    def __init__(self, num_channels: int = 3) -> None:
        super().__init__()
        self.num_channels = num_channels

    def moments(self, image: Tensor) -> Tensor:
        """Mean and log variance (B, 2C, H, W) as in LatentCodec; there is no posterior noise."""
        mean = image.float() * 2 - 1
        return torch.cat([mean, torch.full_like(mean, -30.0)], dim=1)

    def sample(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """The mean (B, C, H, W) of the moments; noise has nothing to widen here."""
        return moments.chunk(2, dim=1)[0]

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """(B, C, H, W) in [-1, 1]."""
        return image.float() * 2 - 1

    def decode(self, latent: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1], clamped."""
        return (latent.float() / 2 + 0.5).clamp(0, 1)
