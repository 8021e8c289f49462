"""U-Nets that give each pixel of an image its class scores in one pass.

Shapes: B batch, K classes, H/W pixels.
"""

from typing import Any

import timm
import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F


class PlainUnet(UNet2DModel):
    """Diffusers' U-Net at timestep 0: the twin of a diffusion model that predicts without diffusion.

    Its arguments are those of UNet2DModel, `out_channels` being K.

    Example:
        >>> unet = PlainUnet(down_block_types=["DownBlock2D"] * 2, up_block_types=["UpBlock2D"] * 2,
        ...                  block_out_channels=[8, 8], norm_num_groups=4, out_channels=2)
        >>> unet(torch.rand(1, 3, 8, 12)).shape
        torch.Size([1, 2, 8, 12])
    """

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K, H, W) of an image (B, C, H, W) whose sides are multiples of `grid_px`."""
        return super().forward(image, 0).sample

    @property
    def grid_px(self) -> int:
        """Sides of an image are multiples of this many pixels."""
        return 2 ** (len(self.config.block_out_channels) - 1)


class TimmUnet(ModelMixin, ConfigMixin):
    """A timm encoder with U-Net's decoder (Ronneberger et al. 2015): each level upsampled, joined with the skip, convolved.

    Args:
        encoder: a name of timm's with feature maps, such as resnet18.
        in_channels: C.
        out_channels: K.
        decoder_channels: width of each level of the decoder from the coarsest on, as many as the encoder has levels.
        pretrained: load timm's weights (from the hub, once; a saved folder brings its own).

    Raises:
        ValueError: another number of widths.

    Example:
        >>> unet = TimmUnet(encoder="resnet10t", out_channels=2)
        >>> unet(torch.rand(1, 3, 64, 32)).shape
        torch.Size([1, 2, 64, 32])
    """

    @register_to_config
    def __init__(
        self,
        encoder: str = "resnet18",
        in_channels: int = 3,
        out_channels: int = 2,
        decoder_channels: tuple[int, ...] = (128, 64, 48, 32, 16),
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        self.register_to_config(pretrained=False)
        self.backbone = timm.create_model(
            encoder, pretrained=pretrained, features_only=True, in_chans=in_channels
        )
        info: Any = self.backbone.feature_info
        self.grid_px = int(info.reduction()[-1])
        widths: list[int] = [in_channels, *info.channels()]
        *skips, width = widths
        if len(skips) != len(decoder_channels):
            raise ValueError(
                f"{encoder} has {len(skips)} levels, and decoder_channels gives widths for {len(decoder_channels)}"
            )
        blocks = []
        for skip, channels in zip(reversed(skips), decoder_channels, strict=True):
            blocks.append(nn.Sequential(*_convolved(width + skip, channels), *_convolved(channels, channels)))
            width = channels
        self.decoder = nn.ModuleList(blocks)
        self.head = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K, H, W) of an image (B, C, H, W) whose sides are multiples of `grid_px`."""
        features: list[Tensor] = self.backbone(image)
        *skips, hidden = [image, *features]
        for block, skip in zip(self.decoder, reversed(skips), strict=True):
            hidden = F.interpolate(hidden, skip.shape[-2:], mode="bilinear", align_corners=False)
            hidden = block(torch.cat([hidden, skip], dim=1))
        return self.head(hidden)


def _convolved(in_channels: int, out_channels: int) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return [conv, nn.GroupNorm(8, out_channels), nn.SiLU()]
