"""Real networks at tiny size for the methods that draw latents and decode them at any size."""

from typing import Any

import torch
from diffusers import UNet2DModel

from diffusion.paths import GaussianPath
from networks.implicit_decoder import ImplicitDecoder
from tests.models import tiny_settings, tiny_vae


def decoder() -> ImplicitDecoder:
    torch.manual_seed(1)
    return ImplicitDecoder(4, (8,), 1, add_attention=False, norm_num_groups=4, widths=(16, 16))


def settings(**further: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    unet = UNet2DModel(
        in_channels=8,
        out_channels=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        add_attention=False,
        norm_num_groups=4,
        class_embed_type="timestep",
    )
    defaults = {
        "unet": unet,
        "vae": tiny_vae(),
        "decoder": decoder(),
        "path": GaussianPath(num_timesteps=50, zero_terminal_snr=True),
    }
    return tiny_settings(**(defaults | further))
