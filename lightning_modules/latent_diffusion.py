"""Stage 2 of latent diffusion: the U-Net over latents (Rombach et al. 2022, Sec. 3.2-3.3)."""

from pathlib import Path
from typing import Any

import torch
from diffusers import SchedulerMixin
from torch import Tensor, nn

from lightning_modules.latent import LatentModule
from lightning_modules.requests import DrawSettings, PredictRequest
from networks.latent_diffusion_parts import LatentDiffusionParts, write_model_index


def stable_diffusion_parts(
    parts: LatentDiffusionParts, scheduler: SchedulerMixin
) -> dict[str, tuple[str | None, str | None]]:
    """Library and class of each part, as model_index.json names them."""
    text = parts.text_encoder
    return {
        "unet": ("diffusers", type(parts.unet).__name__),
        "vae": ("diffusers", type(parts.vae).__name__),
        "scheduler": ("diffusers", type(scheduler).__name__),
        "text_encoder": ("transformers", type(text.model).__name__) if text else (None, None),
        "tokenizer": ("transformers", type(text.tokenizer).__name__) if text else (None, None),
    }


class LatentDiffusion(LatentModule):
    """Generates images from noise, unconditionally or from a prompt.

    Args:
        train_text_encoder: learn the text encoder jointly with the U-Net (the embedded one starts from scratch).
        settings: as LatentModule.
    """

    @property
    def door_options(self) -> frozenset[str]:
        return super().door_options | {"size"}

    def __init__(self, *, train_text_encoder: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        if train_text_encoder and self.parts.text_encoder is None:
            raise ValueError(
                "module.train_text_encoder=true, but the model has no text encoder; set it to false"
            )
        if self.guidance_scale != 1 and self.parts.text_encoder is None:
            raise ValueError(
                f"module.guidance_scale={self.guidance_scale} has no effect on an unconditional model; set it to 1"
            )
        self._train_text_encoder = train_text_encoder
        self.freeze_all_but_trained()

    def trained_networks(self) -> list[nn.Module]:
        text = [self.parts.text_encoder] if self._train_text_encoder else []
        return [self.parts.unet, *text]

    def generate(
        self, captions: list[str], sample_ids: list[int], size_px: tuple[int, int], settings: DrawSettings
    ) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] of B captions; H and W as asked, multiples of the codec's factor."""
        height, width = (side // self.codec.downscale for side in size_px)
        condition = self.condition({}, captions)
        latent = self.draw(condition, (self.codec.num_channels, height, width), sample_ids, settings)
        return self.codec.decode(latent)

    @torch.no_grad()
    def sample_panels(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        image = batch["image"]
        ids = batch["index"].tolist()
        drawn = self.generate(batch["caption"], ids, tuple(image.shape[-2:]), DrawSettings(seed=self.seed))
        return {"photo": image, "decoded latent": self.codec.decode(self.latents(batch)), "sample": drawn}

    @torch.no_grad()
    def evaluated_images(self, batch: dict[str, Any], settings: DrawSettings) -> dict[str, Tensor]:
        image, ids = batch["image"], batch["index"].tolist()
        return {
            "sample from caption": self.generate(batch["caption"], ids, tuple(image.shape[-2:]), settings),
            "autoencoder's ceiling": self.codec.decode(self.codec.encode(image)),
        }

    def generate_prompt(self, request: PredictRequest) -> list[Tensor]:
        """Results uint8 (3, H, W) of a prompt alone; H and W are rounded to the model's grid."""
        grid = self.grid_px()
        sides = request.size_px or (request.short_px, request.short_px)
        height, width = (max(grid, round(side / grid) * grid) for side in sides)
        captions = [request.prompt] * request.num_samples
        drawn = self.generate(captions, request.sample_ids, (height, width), request.draw)
        return list((drawn * 255).round().to(torch.uint8).cpu())

    def export(self, folder: Path) -> None:
        scheduler = self.sampler.scheduler(self.objective)
        self.parts.save(folder, scheduler)
        write_model_index(folder, "StableDiffusionPipeline", stable_diffusion_parts(self.parts, scheduler))

    def load_export(self, folder: Path) -> None:
        loaded = LatentDiffusionParts.from_folder(str(folder))
        self.parts.load_state_dict(loaded.state_dict())
        self.parts.vae.register_to_config(scaling_factor=loaded.vae.config.scaling_factor)
