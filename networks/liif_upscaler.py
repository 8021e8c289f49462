"""LIIF's network of pictures (Chen et al. 2021): an encoder at the picture's own size, then the query.

Shapes: B batch, C features, h/w pixels of the small picture.
"""

from collections.abc import Sequence

from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from networks.liif import LiifNetwork, LiifQuery


class ResidualBlock(nn.Module):
    """Two convolutions added to their input, without normalisation (Lim et al. 2017, EDSR, Fig. 2c)."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(num_features, num_features, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(num_features, num_features, 3, padding=1),
        )

    def forward(self, features: Tensor) -> Tensor:
        return features + self.layers(features)


class LiifUpscaler(LiifNetwork):
    """EDSR's encoder without its upsampling, and LIIF's query on it.

    Args:
        num_features: C (64 in EDSR-baseline).
        num_blocks: residual blocks (16 there).
        widths, unfold, ensemble, max_scale: as LiifQuery.
        residual: add to the small picture, interpolated bilinearly (as LTE, Lee and Jin 2022); False = LIIF.

    Example:
        >>> import torch
        >>> LiifUpscaler(8, 1, widths=(16,))(torch.rand(1, 3, 6, 9), (20, 31)).shape
        torch.Size([1, 3, 20, 31])
    """

    @register_to_config
    def __init__(
        self,
        num_features: int = 64,
        num_blocks: int = 16,
        widths: Sequence[int] = (256, 256, 256, 256),
        unfold: bool = True,
        ensemble: bool = True,
        max_scale: float | None = None,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.first = nn.Conv2d(3, num_features, 3, padding=1)
        self.blocks = nn.Sequential(*[ResidualBlock(num_features) for _ in range(num_blocks)])
        self.last = nn.Conv2d(num_features, num_features, 3, padding=1)
        self.query = LiifQuery(
            num_features, widths=widths, unfold=unfold, ensemble=ensemble, max_scale=max_scale
        )
        if residual:
            for parameter in self.query.layers[-1].parameters():
                nn.init.zeros_(parameter)  # so that it begins as bilinear interpolation

    def features(self, given: Tensor) -> Tensor:
        """Features (B, C, h, w) of pictures (B, 3, h, w) in [0, 1]."""
        shallow = self.first(given * 2 - 1)
        return shallow + self.last(self.blocks(shallow))

    def base(self, given: Tensor) -> Tensor | None:
        return given if self.residual else None
