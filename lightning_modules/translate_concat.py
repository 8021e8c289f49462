"""Translation by diffusion from noise, the source beside the noisy target (Saharia et al. 2022, Palette; Rombach et al. 2022)."""

from typing import Any

from torch import Tensor

from lightning_modules.base import Batch
from lightning_modules.translation import Translator


class TranslateConcat(Translator):
    """Learns to draw the target's latent from noise; the U-Net sees the latents of source and conditions beside it.

    Palette does so with pixels, latent diffusion with latents (Sec. 4.3.2); the new input channels of a trained base start at
    zero weight.

    Args:
        settings: as Translator.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.widen(len(self.inputs()) * self.codec.num_channels)
        self.train_only(self.parts.unet)

    def condition(self, batch: Batch) -> dict[str, Any]:
        return self.told(batch, self.prompts(batch))

    def told(self, batch: Batch, prompts: list[str]) -> dict[str, Any]:
        """The condition: text states, and the latents that the U-Net sees beside x_t."""
        return {"text": self.embed(prompts), "beside": self.latents(batch, self.inputs())}

    def draw_target(self, batch: Batch, prompts: list[str], numbers: list[int], options: Any) -> Tensor:
        source = batch["source"]
        denoise = self.guided(self.told(batch | {"encodings": {}}, prompts), options)
        return self.draw_from_noise(denoise, (source.shape[-2], source.shape[-1]), numbers, options)
