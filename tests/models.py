"""Real classes at tiny size for the tests."""

from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from diffusion.samplers import Sampler
from networks.latent_diffusion_parts import LatentDiffusionParts
from networks.text import TextEncoder


def tiny_vae(latent_channels: int = 4, halvings: int = 2) -> AutoencoderKL:
    widths = (8,) * (halvings + 1)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        latent_channels=latent_channels,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    vae.register_to_config(scaling_factor=0.7)
    return vae


def tiny_unet(text_width: int | None = 16, num_channels: int = 4) -> UNet2DConditionModel:
    cross = text_width is not None
    return UNet2DConditionModel(
        in_channels=num_channels,
        out_channels=num_channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D" if cross else "DownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D" if cross else "UpBlock2D", "UpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn" if cross else "UNetMidBlock2D",
        block_out_channels=(8, 16),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=text_width or 16,
        norm_num_groups=4,
        sample_size=8,
    )


def tiny_parts(text: bool = True, halvings: int = 2, **schedule: Any) -> LatentDiffusionParts:
    torch.manual_seed(0)
    settings = {
        "rescale_betas_zero_snr": True,
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
    }
    return LatentDiffusionParts(
        unet=tiny_unet(16 if text else None),
        vae=tiny_vae(halvings=halvings),
        scheduler=DDIMScheduler(clip_sample=False, **(settings | schedule)),
        text_encoder=TextEncoder.byte_level(width=16, num_heads=2, num_tokens=32) if text else None,
    )


def tiny_settings(**settings: Any) -> dict[str, Any]:
    defaults = {"sampler": Sampler(num_steps=2), "optimizer": lambda p: torch.optim.AdamW(p, lr=1e-3)}
    return defaults | settings


def photo_batch(size: int = 4, size_px: int = 32) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.rand(size, 3, size_px, size_px, generator=generator),
        "caption": ["a photo of a tulip"] * size,
        "name": [f"{i}.png" for i in range(size)],
        "index": torch.arange(size),
    }


def numbered(batch: dict[str, Any], numbers: list[int]) -> dict[str, Any]:
    """The batch with other numbers in the data set, which key the noise."""
    return batch | {"index": torch.tensor(numbers)}


def rows(batch: dict[str, Any], *which: int) -> dict[str, Any]:
    """Some samples of a batch."""
    return {
        key: value[[*which]] if torch.is_tensor(value) else [value[i] for i in which]
        for key, value in batch.items()
    }


def colors(
    module: Any, batch: dict[str, Any], prompts: list[str] | None = None, **words: Any
) -> torch.Tensor:
    """The drawn colour latents of a batch."""
    numbers = batch["index"].tolist()
    with torch.no_grad():
        return module.draw_colors(batch, prompts or [""] * len(numbers), numbers, module.Options(**words))


def colored(
    module: Any, batch: dict[str, Any], prompts: list[str] | None = None, **words: Any
) -> torch.Tensor:
    """A batch in colour."""
    return module.colorize(batch, prompts or [""] * len(batch["index"]), module.Options(**words))


def one_photo(photo: torch.Tensor, number: int = 0, name: str = "photo.png") -> dict[str, Any]:
    """A photo uint8 (3, H, W) as prediction hands it to a method."""
    return {"image": photo[None], "index": torch.tensor([number]), "name": [name]}


def predicted(
    module: Any, photo: torch.Tensor, number: int = 0, name: str = "photo.png", **words: Any
) -> list[Any]:
    """The samples of a photo, each (3, H, W)."""
    (found, *_) = module.results(one_photo(photo, number, name), module.Options(**words)).values()
    return [one[0] for one in ([found] if torch.is_tensor(found) else found)]
