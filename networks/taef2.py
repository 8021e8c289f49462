"""TAEF2, madebyollin's tiny autoencoder of FLUX.2's latents (32 channels, 8 pixels a cell), under its own weight names.

diffusers' AutoencoderTiny lacks the path over the whole picture that its three blocks at the lowest resolution have, so
tiles do not give the latents of the whole. Shapes: B batch, H/W pixels, h/w latent cells.
"""

from pathlib import Path

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput
from safetensors.torch import load_file
from torch import Tensor, nn

WIDTH, POOLED = 64, 256
PARTS = ("encoder", "decoder")


class Block(nn.Module):
    """Three convolutions around which the input passes; a `pool` adds what the whole picture says first."""

    def __init__(self, pooled: bool = False) -> None:
        super().__init__()
        relu = nn.ReLU()
        self.conv = nn.Sequential(_conv(), relu, _conv(), relu, _conv())
        self.pool = (
            nn.Sequential(
                nn.Conv2d(WIDTH, POOLED, 1, bias=False),
                nn.GroupNorm(4, POOLED),
                relu,
                nn.Conv2d(POOLED, WIDTH, 1, bias=False),
            )
            if pooled
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, 64, h, w) of the same."""
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class BoundedLatent(nn.Module):
    """Latents softly limited to three times their usual size."""

    def forward(self, x: Tensor) -> Tensor:
        """3 tanh(x / 3)."""
        return torch.tanh(x / 3) * 3


class Taef2(ModelMixin, ConfigMixin):
    """Encodes and decodes as diffusers' AutoencoderTiny does: pictures in [-1, 1], latents as they are.

    Example:
        >>> vae = Taef2()
        >>> vae.encode(torch.rand(1, 3, 16, 24)).latents.shape
        torch.Size([1, 32, 2, 3])
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 32,
        encoder_block_out_channels: tuple[int, ...] = (WIDTH,) * 4,
        scaling_factor: float = 1.0,
    ) -> None:
        super().__init__()
        down = [nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1, bias=False) for _ in range(3)]
        up = [nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False) for _ in range(3)]
        levels = [[down[k], *(Block(pooled=k == 2) for _ in range(3))] for k in range(3)]
        self.encoder = nn.Sequential(
            _conv(3), Block(), *(layer for level in levels for layer in level), _conv(WIDTH, latent_channels)
        )
        levels = [
            [*(Block(pooled=k == 0) for _ in range(3)), nn.Upsample(scale_factor=2), up[k]] for k in range(3)
        ]
        self.decoder = nn.Sequential(
            BoundedLatent(),
            _conv(latent_channels),
            nn.ReLU(),
            *(layer for level in levels for layer in level),
            Block(),
            _conv(WIDTH, 3),
        )

    @classmethod
    def from_official(cls, folder: str | Path) -> "Taef2":
        """Of taef2_encoder.safetensors and taef2_decoder.safetensors, in float32."""
        model = cls()
        for part in PARTS:
            getattr(model, part).load_state_dict(load_file(Path(folder, f"taef2_{part}.safetensors")))
        return model.eval()

    def encode(self, image: Tensor) -> AutoencoderTinyOutput:
        """Latents (B, 32, H / 8, W / 8) of pictures (B, 3, H, W) in [-1, 1]."""
        return AutoencoderTinyOutput(latents=self.encoder(image / 2 + 0.5))

    def decode(self, latent: Tensor) -> DecoderOutput:
        """Pictures (B, 3, 8 h, 8 w) about in [-1, 1] of latents (B, 32, h, w)."""
        return DecoderOutput(sample=self.decoder(latent) * 2 - 1)


def _conv(channels: int = WIDTH, out_channels: int = WIDTH) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, 3, padding=1)
