"""SegDiff's network (Amit et al. 2021): features of the image and of the noisy mask are summed, then a U-Net.

Shapes: B batch, C image channels, K mask channels, N features of the encoder, D width of the U-Net, H/W pixels.
"""

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

_RESIDUAL_SCALE = 0.2


class DenseBlock(nn.Module):
    """Five convolutions that each see all before (Wang et al. 2018, ESRGAN, Fig. 4), added at a fifth to the input."""

    def __init__(self, num_features: int, growth: int) -> None:
        super().__init__()
        widths = [num_features + growth * number for number in range(5)]
        self.layers = nn.ModuleList(
            nn.Conv2d(width, growth if width != widths[-1] else num_features, 3, padding=1)
            for width in widths
        )

    def forward(self, features: Tensor) -> Tensor:
        seen = features
        for layer in self.layers[:-1]:
            seen = torch.cat([seen, F.leaky_relu(layer(seen), 0.2)], dim=1)
        return features + _RESIDUAL_SCALE * self.layers[-1](seen)


class RRDB(nn.Module):
    """Residual in residual: three dense blocks, added at a fifth to the input."""

    def __init__(self, num_features: int, growth: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[DenseBlock(num_features, growth) for _ in range(3)])

    def forward(self, features: Tensor) -> Tensor:
        return features + _RESIDUAL_SCALE * self.blocks(features)


class SegDiffNetwork(ModelMixin, ConfigMixin):
    """eps(x_t, I, t) = D(E(F(x_t) + G(I), t), t) (Amit et al. 2021, Eq. 6).

    Args:
        image_channels: C.
        mask_channels: K.
        num_features: N of the RRDB encoder G (64 in the paper).
        num_blocks: its RRDB blocks (6 to 15 in the paper).
        growth: channels that each convolution of a dense block adds (32 in the paper).
        patch_px: side of the patches of the mask that become channels (space to depth) before F and are undone at the
            end; 1 = the paper's, 2 takes a quarter of the time.
        image_patch_px: the same of the image before G; None = that of the mask. Over latents, their pixels a cell.
        block_out_channels: widths of the U-Net's levels; the first is D.
        layers_per_block: residual blocks of each level (3 in the paper).
        attention_levels: the levels with self-attention, counted from the finest, 0.
        attention_head_dim: channels of each of its heads.
        norm_num_groups: of its group norms.
        dropout: in its residual blocks.

    Example:
        >>> network = SegDiffNetwork(num_features=8, num_blocks=1, growth=4, block_out_channels=(8, 16), norm_num_groups=4)
        >>> features = network.encode(torch.rand(1, 3, 8, 8))
        >>> network(torch.randn(1, 1, 8, 8), torch.tensor([3]), features).shape
        torch.Size([1, 1, 8, 8])
    """

    @register_to_config
    def __init__(
        self,
        image_channels: int = 3,
        mask_channels: int = 1,
        num_features: int = 64,
        num_blocks: int = 10,
        growth: int = 32,
        patch_px: int = 1,
        image_patch_px: int | None = None,
        block_out_channels: tuple[int, ...] = (128, 128, 128, 256, 512),
        layers_per_block: int = 3,
        attention_levels: tuple[int, ...] = (),
        attention_head_dim: int = 64,
        norm_num_groups: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        width, cells, image_px = block_out_channels[0], patch_px**2, image_patch_px or patch_px
        self.image_px, self.grid_px = image_px, image_px * 2 ** (len(block_out_channels) - 1)
        self.to_cells = nn.PixelUnshuffle(patch_px)
        self.to_pixels = nn.PixelShuffle(patch_px)
        self.image_to_cells = nn.PixelUnshuffle(image_px)
        self.encoder_in = nn.Conv2d(image_channels * image_px**2, num_features, 3, padding=1)
        self.encoder_blocks = nn.Sequential(*[RRDB(num_features, growth) for _ in range(num_blocks)])
        self.encoder_trunk = nn.Conv2d(num_features, num_features, 3, padding=1)
        self.encoder_out = nn.Sequential(
            nn.Conv2d(num_features, num_features, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(num_features, width, 3, padding=1),
        )
        self.first = nn.Conv2d(mask_channels * cells, width, 3, padding=1)
        attends = [level in attention_levels for level in range(len(block_out_channels))]
        self.unet = UNet2DModel(
            in_channels=width,
            out_channels=mask_channels * cells,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            add_attention=bool(attention_levels),
            attention_head_dim=attention_head_dim,
            norm_num_groups=norm_num_groups,
            dropout=dropout,
        )
        self.unet.conv_in = nn.Identity()  # F and G stand in its place

    def encode(self, image: Tensor) -> Tensor:
        """G: features (B, D, H, W), in patches, of an image (B, C, H, W); they depend on neither x_t nor the timestep."""
        shallow = self.encoder_in(self.image_to_cells(image))
        return self.encoder_out(shallow + self.encoder_trunk(self.encoder_blocks(shallow)))

    def forward(self, x_t: Tensor, timestep: Tensor, features: Tensor) -> Tensor:
        """The prediction (B, K, H, W) at x_t (B, K, H, W) and timestep (B,) under the features of `encode`."""
        return self.to_pixels(self.unet(self.first(self.to_cells(x_t)) + features, timestep).sample)
