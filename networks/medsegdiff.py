"""MedSegDiff's network: the image and the noisy mask are encoded side by side and fused (Wu et al. 2022, arXiv 2211.00611).

Shapes: B batch, C image channels, M mask channels, K anchor classes, D channels of a level, H/W pixels, h/w cells.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F


class FourierParser(nn.Module):
    """FF-Parser (Wu et al. 2022, Sec. 3.3): features are weighted frequency by frequency with a learned map.

    The map lies over the plane of frequencies and is read where the size at hand has its own, so any size will do.

    Args:
        num_channels: D.
        num_frequencies: points of the map from frequency 0 to Nyquist's.

    Example:
        >>> parser = FourierParser(4)
        >>> features = torch.randn(1, 4, 6, 9)
        >>> torch.allclose(parser(features), features, atol=1e-5)  # the map begins at one
        True
    """

    def __init__(self, num_channels: int, num_frequencies: int = 17) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels, 2 * num_frequencies - 1, num_frequencies))

    def forward(self, features: Tensor) -> Tensor:
        """The weighted features (B, D, h, w), in their own dtype."""
        height, width = features.shape[-2:]
        with torch.autocast(features.device.type, enabled=False):  # there is no transform in low precision
            rows = torch.fft.fftfreq(height, 0.5, device=features.device)
            columns = torch.fft.rfftfreq(width, 0.25, device=features.device) - 1
            grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], dim=-1)
            weight = F.grid_sample(self.weight[None].float(), grid[None], align_corners=True)
            spectrum = torch.fft.rfft2(features.float(), norm="ortho") * weight
            return torch.fft.irfft2(spectrum, (height, width), norm="ortho").to(features.dtype)


class AttentiveFusion(nn.Module):
    """Dynamic conditional encoding: A = (LN(m_I) * LN(m_x)) * m_I (Wu et al. 2022, Eq. 3), m_x through the FF-Parser.

    Args:
        num_channels: D.
        parse: whether m_x goes through the FF-Parser.
        attend: whether the features meet as above; otherwise they are added.
    """

    def __init__(self, num_channels: int, *, parse: bool = True, attend: bool = True) -> None:
        super().__init__()
        self.parser = FourierParser(num_channels) if parse else nn.Identity()
        self.norm_image = LayerNorm2d(num_channels) if attend else None
        self.norm_mask = LayerNorm2d(num_channels) if attend else None

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Features of the image (B, D, h, w) as those of the noisy mask, of the same shape, attend to them."""
        mask = self.parser(mask)
        if self.norm_image is None or self.norm_mask is None:
            return image + mask
        return self.norm_image(image) * self.norm_mask(mask) * image


class FusedUnet(UNet2DModel):
    """Diffusers' U-Net, open between its levels.

    Its arguments are those of UNet2DModel.
    """

    def features(
        self,
        hidden: Tensor,
        time: Tensor | int,
        *,
        first_skip: Tensor | None = None,
        fuse: Callable[[int, Tensor, tuple[Tensor, ...]], tuple[Tensor, tuple[Tensor, ...]]] | None = None,
        middle: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The last features (B, D, h, w) before the output's convolution, and those of the middle.

        Args:
            hidden: what stands in for the first convolution's output (B, D, h, w).
            time: timestep (B,), or one number.
            first_skip: the skip that goes with it; None = itself.
            fuse: changes each level's output and its skips, level by level.
            middle: changes the features before the middle block, given the embedded timestep.
        """
        timestep = torch.as_tensor(time, device=hidden.device).expand(len(hidden))
        embedded = self.time_embedding(self.time_proj(timestep).to(hidden.dtype))
        skips: tuple[Tensor, ...] = (hidden if first_skip is None else first_skip,)
        for level, block in enumerate(self.down_blocks):
            hidden, own = block(hidden_states=hidden, temb=embedded)
            if fuse is not None:
                hidden, own = fuse(level, hidden, own)
            skips += own
        if middle is not None:
            hidden = middle(hidden, embedded)
        centre = hidden = self.mid_block(hidden, embedded) if self.mid_block is not None else hidden
        for block in self.up_blocks:
            count = len(block.resnets)
            hidden = block(hidden, skips[-count:], embedded)
            skips = skips[:-count]
        return self.conv_act(self.conv_norm_out(hidden)), centre


def fused_unet(
    in_out: tuple[int, int], widths: tuple[int, ...], layers: int, groups: int, dropout: float
) -> FusedUnet:
    """A U-Net of convolutions alone: input and output channels, widths, blocks a level, groups of the norms, dropout."""
    return FusedUnet(
        in_channels=in_out[0],
        out_channels=in_out[1],
        down_block_types=("DownBlock2D",) * len(widths),
        up_block_types=("UpBlock2D",) * len(widths),
        block_out_channels=tuple(widths),
        layers_per_block=layers,
        add_attention=False,
        norm_num_groups=groups,
        dropout=dropout,
    )


class MedSegDiffNetwork(ModelMixin, ConfigMixin):
    """eps(x_t, I, t) = D(E_I(I) + E_x(x_t), t), the encoders fused level by level (Wu et al. 2022, Eq. 2-3).

    Both encoders are summed at every level, skips included. With `anchor_classes`, a U-Net of the image alone predicts
    the mask as well; its last features, detached as in the official code, join those of x_t after the first
    convolution. Its prediction is trained beside the denoising and never mixed into the result.

    Args:
        image_channels: C.
        mask_channels: M.
        anchor_classes: K of the anchor branch; 0 = without.
        patch_px: side of the patches that become channels before and are undone after the network.
        block_out_channels: widths of the levels.
        layers_per_block: residual blocks of each level.
        fusion_levels: the levels where the encoders are fused, 0 = the finest; all before the first depend on the image
            alone and are computed once per image.
        parse: whether the FF-Parser filters the mask's features there.
        attend: whether the features meet by attentive fusion there; otherwise they are added.
        norm_num_groups: of the group norms.
        dropout: in the residual blocks.

    Example:
        >>> network = MedSegDiffNetwork(block_out_channels=(8, 8, 8), norm_num_groups=4, anchor_classes=2)
        >>> condition = network.encode(torch.rand(1, 3, 8, 16))
        >>> network(torch.randn(1, 1, 8, 16), torch.tensor([3]), condition).shape, condition["anchor"].shape
        (torch.Size([1, 1, 8, 16]), torch.Size([1, 2, 8, 16]))
    """

    @register_to_config
    def __init__(
        self,
        image_channels: int = 3,
        mask_channels: int = 1,
        anchor_classes: int = 0,
        patch_px: int = 1,
        block_out_channels: tuple[int, ...] = (128, 256, 256, 512),
        layers_per_block: int = 2,
        fusion_levels: tuple[int, ...] = (1, 2),
        parse: bool = True,
        attend: bool = True,
        norm_num_groups: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if wrong := [level for level in fusion_levels if not 0 <= level < len(block_out_channels)]:
            raise ValueError(
                f"fusion_levels has {wrong[0]}; these {len(block_out_channels)} levels are 0 to {len(block_out_channels) - 1}"
            )
        width, cells = block_out_channels[0], patch_px**2
        self.image_px, self.grid_px = patch_px, patch_px * 2 ** (len(block_out_channels) - 1)
        self.to_cells = nn.PixelUnshuffle(patch_px)
        self.to_pixels = nn.PixelShuffle(patch_px)
        settings = (block_out_channels, layers_per_block, norm_num_groups, dropout)
        self.unet = fused_unet((mask_channels * cells, mask_channels * cells), *settings)
        image_unet = fused_unet((image_channels * cells, 1), *settings)
        self.image_in, self.image_blocks = image_unet.conv_in, image_unet.down_blocks
        self.image_time = image_unet.time_embedding.linear_2.out_features
        self.fusions = nn.ModuleDict(
            {
                str(level): AttentiveFusion(block_out_channels[level], parse=parse, attend=attend)
                for level in fusion_levels
            }
        )
        self.anchor = self.anchor_join = None
        if anchor_classes:
            self.anchor = fused_unet((image_channels * cells, anchor_classes * cells), *settings)
            self.anchor_join = nn.Conv2d(width, width, 1)

    def encode(self, image: Tensor) -> dict[str, Any]:
        """What depends on the image (B, C, H, W) alone: its encoder up to the first fusion, and the anchor's logits."""
        cells = self.to_cells(image)
        hidden = self.image_in(cells)
        skips: list[tuple[Tensor, ...]] = [(hidden,)]
        first = min((int(level) for level in self.fusions), default=len(self.image_blocks) - 1)
        for block in self.image_blocks[: first + 1]:
            hidden, own = self._image_level(block, hidden)
            skips.append(own)
        condition: dict[str, Any] = {"hidden": hidden, "skips": skips}
        if self.anchor is not None:
            features, _ = self.anchor.features(self.anchor.conv_in(cells), 0)
            condition |= {
                "anchor": self.to_pixels(self.anchor.conv_out(features)),
                "anchor_features": features.detach(),
            }
        return condition

    def forward(self, x_t: Tensor, timestep: Tensor, condition: dict[str, Any]) -> Tensor:
        """The prediction (B, M, H, W) at x_t (B, M, H, W) and timestep (B,) under the condition of `encode`."""
        hidden = self.unet.conv_in(self.to_cells(x_t))
        if self.anchor_join is not None:
            hidden = hidden + self.anchor_join(condition["anchor_features"])
        seen, known = condition["hidden"], condition["skips"]

        def fuse(level: int, hidden: Tensor, own: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
            nonlocal seen
            if level + 1 < len(known):
                skips = known[level + 1]
            else:
                seen, skips = self._image_level(self.image_blocks[level], seen)
            if str(level) in self.fusions:
                seen = self.fusions[str(level)](seen, hidden)
                skips = (*skips[:-1], seen)
            summed = tuple(one + other for one, other in zip(own, skips, strict=True))
            # E_I + E_x goes to the decoder; the mask's own encoder sees the mask alone.
            return hidden, summed

        def middle(hidden: Tensor, _: Tensor) -> Tensor:
            return hidden + seen

        features, _ = self.unet.features(
            hidden, timestep, first_skip=hidden + known[0][0], fuse=fuse, middle=middle
        )
        return self.to_pixels(self.unet.conv_out(features))

    def _image_level(self, block: nn.Module, hidden: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """A level of the image's encoder, which has no timestep."""
        return block(hidden_states=hidden, temb=hidden.new_zeros(len(hidden), self.image_time))
