"""The network of MedSegDiff's second version: U-SA and SS-Former (Wu et al. 2023, arXiv 2301.11798).

Shapes: B batch, C image channels, M mask channels, K anchor classes, D channels of a level, H/W pixels, h/w cells.
"""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from networks.medsegdiff import fused_unet


class UncertainSpatialAttention(nn.Module):
    """U-SA (Wu et al. 2023, Eq. 2-3): f_anc = max(f_c * k, f_c), then f_d + sigmoid(conv(f_anc)) f_d, k a learned Gaussian.

    Args:
        anchor_channels: of f_c.
        num_channels: D, of f_d.
        kernel_size: side of k.
    """

    def __init__(self, anchor_channels: int, num_channels: int, kernel_size: int = 5) -> None:
        super().__init__()
        line = torch.exp(-((torch.arange(kernel_size) - kernel_size // 2) ** 2) / 2.0)
        kernel = torch.outer(line, line) / line.sum() ** 2
        self.kernel = nn.Parameter(kernel.expand(anchor_channels, 1, -1, -1).clone())
        self.gate = nn.Conv2d(anchor_channels, num_channels, 1)

    def forward(self, anchor: Tensor, features: Tensor) -> Tensor:
        """The features (B, D, h, w), stronger where the anchor (B, anchor_channels, h, w) or its surroundings say so."""
        blurred = F.conv2d(anchor, self.kernel, padding="same", groups=len(self.kernel))
        return features + self.gate(torch.maximum(blurred, anchor)).sigmoid() * features


class SpectrumSpaceBlock(nn.Module):
    """One block of SS-Former (Wu et al. 2023, Sec. "Semantic Condition"): attention whose affinities meet in Fourier space.

    The affinity of the spectra of both embeddings is filtered by a band-pass that depends on the timestep (NBP-Filter),
    brought back to space, and weighs the values.

    Args:
        num_channels: D of both embeddings.
        time_channels: of the timestep's embedding.
        num_heads: of the attention.
    """

    def __init__(self, num_channels: int, time_channels: int, num_heads: int = 4) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_query, self.norm_key = LayerNorm2d(num_channels), LayerNorm2d(num_channels)
        self.query, self.key, self.value, self.out = (
            nn.Conv2d(num_channels, num_channels, 1) for _ in range(4)
        )
        self.band_pass = nn.Linear(time_channels, 2 * num_channels)
        for layer in (self.band_pass, self.out):  # begins as the identity
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, queried: Tensor, known: Tensor, time: Tensor) -> Tensor:
        """`queried` (B, D, h, w) with what `known` (B, D, h, w) says to it at an embedded timestep (B, T)."""
        height, width = queried.shape[-2:]
        query, known = self.query(self.norm_query(queried)), self.norm_key(known)
        key, value = self.key(known), self.value(known)
        with torch.autocast(queried.device.type, enabled=False):
            # Bands are rings of frequencies: a Gaussian whose centre and width follow the timestep, channel by channel.
            rows = torch.fft.fftfreq(height, 0.5, device=queried.device)
            columns = torch.fft.rfftfreq(width, 0.5, device=queried.device)
            radius = torch.hypot(*torch.meshgrid(rows, columns, indexing="ij"))
            centre, sharpness = self.band_pass(F.silu(time.float()))[..., None, None].chunk(2, dim=1)
            band = torch.exp(-((radius - centre) ** 2) * F.softplus(sharpness))
            spectra = [torch.fft.rfft2(part.float(), norm="ortho") * band for part in (query, key)]
            query, key = (torch.fft.irfft2(part, (height, width), norm="ortho") for part in spectra)
        heads = [
            rearrange(part.to(value.dtype), "b (n d) h w -> b n (h w) d", n=self.num_heads)
            for part in (query, key, value)
        ]
        found = rearrange(F.scaled_dot_product_attention(*heads), "b n (h w) d -> b (n d) h w", h=height)
        return queried + self.out(found)


class MedSegDiffV2Network(ModelMixin, ConfigMixin):
    """A U-Net of the image tells that of the mask where to look (U-SA) and what it sees (SS-Former) (Wu et al. 2023).

    The U-Net of the image runs once per image; its own prediction is trained beside the denoising (the paper's anchor
    loss) and never mixed into the result.

    Args:
        image_channels: C.
        mask_channels: M.
        anchor_classes: K.
        patch_px: side of the patches that become channels before and are undone after the networks.
        block_out_channels: widths of the levels of both U-Nets.
        layers_per_block: residual blocks of each level.
        spatial_attention: whether the anchor's features gate those of x_t after the first convolution (U-SA).
        num_semantic_blocks: of SS-Former before the middle, alternately asked by the mask and by the image; 0 = none.
        norm_num_groups: of the group norms.
        dropout: in the residual blocks.

    Example:
        >>> network = MedSegDiffV2Network(block_out_channels=(8, 8), norm_num_groups=4)
        >>> condition = network.encode(torch.rand(1, 3, 8, 16))
        >>> network(torch.randn(1, 1, 8, 16), torch.tensor([3]), condition).shape
        torch.Size([1, 1, 8, 16])
    """

    @register_to_config
    def __init__(
        self,
        image_channels: int = 3,
        mask_channels: int = 1,
        anchor_classes: int = 2,
        patch_px: int = 1,
        block_out_channels: tuple[int, ...] = (128, 256, 256, 512),
        layers_per_block: int = 2,
        spatial_attention: bool = True,
        num_semantic_blocks: int = 2,
        norm_num_groups: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        width, cells = block_out_channels[0], patch_px**2
        self.image_px, self.grid_px = patch_px, patch_px * 2 ** (len(block_out_channels) - 1)
        self.to_cells = nn.PixelUnshuffle(patch_px)
        self.to_pixels = nn.PixelShuffle(patch_px)
        settings = (block_out_channels, layers_per_block, norm_num_groups, dropout)
        self.unet = fused_unet((mask_channels * cells, mask_channels * cells), *settings)
        self.anchor = fused_unet((image_channels * cells, anchor_classes * cells), *settings)
        self.anchor_attention = UncertainSpatialAttention(width, width) if spatial_attention else None
        time_channels = self.unet.time_embedding.linear_2.out_features
        self.semantic = nn.ModuleList(
            SpectrumSpaceBlock(block_out_channels[-1], time_channels) for _ in range(num_semantic_blocks)
        )

    def encode(self, image: Tensor) -> dict[str, Tensor]:
        """What the U-Net of the image (B, C, H, W) says: its logits, last features, and embedding in the middle."""
        features, embedding = self.anchor.features(self.anchor.conv_in(self.to_cells(image)), 0)
        logits = self.to_pixels(self.anchor.conv_out(features))
        return {"anchor": logits, "features": features, "embedding": embedding}

    def forward(self, x_t: Tensor, timestep: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """The prediction (B, M, H, W) at x_t (B, M, H, W) and timestep (B,) under the condition of `encode`."""
        hidden = self.unet.conv_in(self.to_cells(x_t))
        if self.anchor_attention is not None:
            hidden = self.anchor_attention(condition["features"], hidden)

        def middle(hidden: Tensor, embedded: Tensor) -> Tensor:
            semantic = condition["embedding"]
            for number, block in enumerate(self.semantic):
                if number % 2 == 0:
                    hidden = block(hidden, semantic, embedded)
                else:
                    semantic = block(semantic, hidden, embedded)
                    hidden = hidden + semantic
            return hidden

        features, _ = self.unet.features(hidden, timestep, middle=middle)
        return self.to_pixels(self.unet.conv_out(features))
