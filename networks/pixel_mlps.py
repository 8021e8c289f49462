"""An ensemble of pixel classifiers on feature maps of different sizes (Baranchuk et al. 2022, DDPM-Seg).

Shapes: B batch, C channels of one map, h/w its cells, M members, D width, K classes, P pixels, H/W pixels of the image.
"""

from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


class PixelMlps(ModelMixin, ConfigMixin):
    """M classifiers of the features of a pixel, each three linear layers with ReLU and batch norm between.

    In the paper all maps are brought to the image's size and joined before the first layer. That layer and bilinear
    upsampling are linear, so they commute: here it is applied to each map at its own size, and what is upsampled is its D
    outputs instead of thousands of features. The result is the same.

    Args:
        feature_channels: C of each map.
        num_classes: K.
        num_members: M.
        widths: D of the first and the second layer; the paper's are (128, 32) below 30 classes, else (256, 128).

    Example:
        >>> mlps = PixelMlps((6, 4), num_classes=3, num_members=2).eval()
        >>> mlps([torch.rand(1, 6, 4, 4), torch.rand(1, 4, 8, 8)], (16, 16)).shape
        torch.Size([2, 1, 3, 16, 16])
    """

    @register_to_config
    def __init__(
        self,
        feature_channels: Sequence[int],
        num_classes: int = 2,
        num_members: int = 10,
        widths: tuple[int, int] = (128, 32),
    ) -> None:
        super().__init__()
        self.num_members = num_members
        inner, outer = (num_members * width for width in widths)
        self.first = nn.ModuleList(nn.Conv2d(channels, inner, 1, bias=False) for channels in feature_channels)
        self.bias = nn.Parameter(torch.zeros(inner))
        self.rest = nn.Sequential(
            nn.ReLU(),
            nn.BatchNorm2d(inner),
            nn.Conv2d(inner, outer, 1, groups=num_members),
            nn.ReLU(),
            nn.BatchNorm2d(outer),
            nn.Conv2d(outer, num_members * num_classes, 1, groups=num_members),
        )
        for weight in (module.weight for module in self.modules() if isinstance(module, nn.Conv2d)):
            nn.init.normal_(weight, std=0.02)

    def forward(self, maps: Sequence[Tensor], size_px: tuple[int, int]) -> Tensor:
        """Logits (M, B, K, H, W) of maps (B, C, h, w)."""
        sums: dict[tuple[int, int], Tensor] = {}  # maps of one size are upsampled together
        for layer, features in zip(self.first, maps, strict=True):
            size = (features.shape[-2], features.shape[-1])
            sums[size] = sums[size] + layer(features) if size in sums else layer(features)
        hidden = self.bias[:, None, None]
        for size, values in sums.items():
            if size != size_px:
                values = F.interpolate(values, size_px, mode="bilinear", align_corners=False)
            hidden = hidden + values
        return rearrange(self.rest(hidden), "b (m k) h w -> m b k h w", m=self.num_members)

    def at_pixels(self, maps: Sequence[Tensor], places: Tensor) -> Tensor:
        """Logits (M, B, K, P) of pixels of each member's own.

        Args:
            maps: (B, C, h, w).
            places: (M, B, P, 2), x and y of the pixels' centres as shares of the image in (0, 1).
        """
        grid = rearrange(places * 2 - 1, "m b p xy -> b m p xy")
        hidden = self.bias.reshape(self.num_members, -1, 1)
        for layer, features in zip(self.first, maps, strict=True):
            # In float32: bfloat16 knows the places of 512 pixels to half a pixel.
            read = F.grid_sample(features.float(), grid.float(), padding_mode="border", align_corners=False)
            weight = rearrange(layer.weight, "(m d) c 1 1 -> m d c", m=self.num_members)
            hidden = hidden + torch.einsum("mdc,bcmp->bmdp", weight.to(read.dtype), read)
        logits = self.rest(rearrange(hidden, "b m d p -> b (m d) p 1"))
        return rearrange(logits, "b (m k) p 1 -> m b k p", m=self.num_members)
