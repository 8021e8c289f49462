"""A decoder whose pictures have any size: the usual one without its upsampling, then LIIF's query (Kim and Kim 2024, Eq. 6).

Shapes: B batch, Z latent channels, C features, h/w latent cells.
"""

from collections.abc import Sequence
from pathlib import Path

from diffusers.configuration_utils import register_to_config
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D
from torch import Tensor, nn

from networks.foreign_models import load_weights
from networks.liif import LiifNetwork, LiifQuery


class ImplicitDecoder(LiifNetwork):
    """D_phi at the latent's size, then f_theta at each pixel (arXiv 2403.10255).

    Args:
        latent_channels: Z.
        block_out_channels: widths of the levels of residual blocks, the first next to the latent; C is the last.
        layers_per_block: residual blocks of each level.
        add_attention: self-attention between the middle's blocks, which grows with the square of the latent cells.
        norm_num_groups: of the group norms.
        widths, unfold, ensemble, max_scale: as LiifQuery; max_scale counts pixels a latent cell.

    Example:
        >>> import torch
        >>> decoder = ImplicitDecoder(4, (16, 8), 1, norm_num_groups=4, widths=(16,))
        >>> decoder(torch.randn(1, 4, 6, 9), (20, 31)).shape
        torch.Size([1, 3, 20, 31])
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 4,
        block_out_channels: Sequence[int] = (512, 256, 128),
        layers_per_block: int = 2,
        add_attention: bool = True,
        norm_num_groups: int = 32,
        widths: Sequence[int] = (256, 256, 256, 256),
        unfold: bool = False,
        ensemble: bool = True,
        max_scale: float | None = None,
    ) -> None:
        super().__init__()
        width = block_out_channels[0]
        self.first = nn.Conv2d(latent_channels, width, 3, padding=1)
        self.middle = UNetMidBlock2D(
            width,
            temb_channels=None,
            resnet_groups=norm_num_groups,
            add_attention=add_attention,
            attention_head_dim=width,
        )
        blocks: list[nn.Module] = []
        for wanted in block_out_channels:
            for _ in range(layers_per_block):
                blocks.append(
                    ResnetBlock2D(
                        in_channels=width,
                        out_channels=wanted,
                        temb_channels=None,
                        groups=norm_num_groups,
                        eps=1e-6,
                    )
                )
                width = wanted
        self.blocks = nn.ModuleList(blocks)
        self.last = nn.Sequential(
            nn.GroupNorm(norm_num_groups, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)
        )
        self.query = LiifQuery(width, widths=widths, unfold=unfold, ensemble=ensemble, max_scale=max_scale)

    @classmethod
    def from_folder(cls, source: str) -> "ImplicitDecoder":
        """The decoder of a folder that export.py wrote of a run of experiment=implicit_decoder; FileNotFoundError of another."""
        if not Path(source, "decoder").is_dir():
            raise FileNotFoundError(
                f"{source} has no folder decoder/; give the folder that export.py wrote of a run of experiment=implicit_decoder"
            )
        return load_weights(cls, source, subfolder="decoder", use_safetensors=True)

    def features(self, given: Tensor) -> Tensor:
        """Features (B, C, h, w) of unscaled latents (B, Z, h, w)."""
        hidden = self.middle(self.first(given))
        for block in self.blocks:
            hidden = block(hidden, None)
        return self.last(hidden)
