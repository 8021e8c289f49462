"""What all colorizers share: a drawn colour latent moved onto the photo's own lightness, at any size.

Shapes: B batch, H/W pixels, Z latent channels, h/w latent cells.
"""

from typing import Any

import torch
from torch import Tensor

from color.lab import grey_image, lightness, rgb_to_lab
from color.transfer import transfer_chroma, transfer_chroma_exact, working_copy
from lightning_modules.latent import LatentModule
from lightning_modules.requests import DrawSettings, PredictRequest
from metrics.delta_e import delta_e_2000


class Colorizer(LatentModule):
    """Colours grey photos: a method says how the colour latent is drawn, the lightness is always the input's own.

    Args:
        chroma_scale: multiplies the result's ab: 0 is grey, 1 as drawn.
        settings: as LatentModule.
    """

    def __init__(self, *, chroma_scale: float = 1.0, **settings: Any) -> None:
        super().__init__(**settings)
        self.chroma_scale = chroma_scale

    def draw_colors(
        self, given: Tensor, captions: list[str], sample_ids: list[int], settings: DrawSettings | None = None
    ) -> Tensor:
        """The colour latent (B, Z, h, w) of B photos; arguments as in `colorize`."""
        raise TypeError(f"{type(self).__name__} does not say how colours are drawn")

    @torch.no_grad()
    def colorize(
        self, given: Tensor, captions: list[str], sample_ids: list[int], settings: DrawSettings | None = None
    ) -> Tensor:
        """Coloured images (B, 3, H, W) in [0, 1] that keep the given lightness.

        Args:
            given: lightness L*/100 (B, 1, H, W); H and W multiples of the model's grid.
            captions: B prompts, "" for none.
            sample_ids: B numbers that key the noise.
            settings: steps, guidance, negative prompt and seed.
        """
        latent = self.draw_colors(given, captions, sample_ids, settings)
        asked = settings.chroma_scale if settings is not None else None
        chroma_scale = self.chroma_scale if asked is None else asked
        return transfer_chroma_exact(given, self.codec.decode(latent), chroma_scale=chroma_scale)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Colours the split without prompts: CIEDE2000 to the truth, beside that of the grey photos."""
        super().test_step(batch, batch_idx)
        image, ids = batch["image"], batch["index"].tolist()
        given, truth = lightness(image), rgb_to_lab(image)
        result = self.colorize(given, [""] * len(ids), ids, DrawSettings(seed=self.seed))
        for name, compared in (("delta_e2000", result), ("grey_delta_e2000", grey_image(given))):
            error = delta_e_2000(rgb_to_lab(compared), truth).mean()
            self.log(f"test/{name}", error, batch_size=len(ids), sync_dist=True)

    @torch.no_grad()
    def sample_panels(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        given, ids = lightness(batch["image"]), batch["index"].tolist()
        settings = DrawSettings(seed=self.seed)
        return {
            "input": grey_image(given),
            "result": self.colorize(given, [""] * len(ids), ids, settings),
            "result with prompt": self.colorize(given, batch["caption"], ids, settings),
            "truth": batch["image"],
        }

    @torch.no_grad()
    def colorize_at(
        self, given: Tensor, captions: list[str], sample_ids: list[int], settings: DrawSettings
    ) -> Tensor:
        """As `colorize` at the working size `settings.short_px`, its chroma carried up to the size of `given`."""
        short_px = settings.short_px
        if short_px is None or short_px == min(given.shape[-2:]):
            return self.colorize(given, captions, sample_ids, settings)
        photos = (grey_image(given) * 255).round().byte().cpu()
        small = torch.cat([working_copy(p, short_px=short_px, grid_px=self.grid_px()) for p in photos])
        drawn = self.colorize(lightness(small.to(given.device)), captions, sample_ids, settings).cpu()
        carried = [transfer_chroma(photo, colored) for photo, colored in zip(photos, drawn, strict=True)]
        return torch.stack(carried).to(given.device).float() / 255

    @torch.no_grad()
    def evaluated_images(self, batch: dict[str, Any], settings: DrawSettings) -> dict[str, Tensor]:
        image = batch["image"]
        given, ids = lightness(image), batch["index"].tolist()
        rows = {"no prompt": self.colorize_at(given, [""] * len(ids), ids, settings)}
        if any(batch["caption"]):
            rows["caption as prompt"] = self.colorize_at(given, batch["caption"], ids, settings)
        ceiling = transfer_chroma_exact(given, self.codec.decode(self.codec.encode(image)))
        return {**rows, "autoencoder's ceiling": ceiling, "grey": grey_image(given)}

    @torch.no_grad()
    def predict_photo(self, photo: Tensor, request: PredictRequest) -> list[Tensor]:
        """The photo in colour at its own size: chroma is drawn at the working size and carried up edge-aware."""
        small = working_copy(photo, short_px=request.short_px, grid_px=self.grid_px())
        given = lightness(small.to(self.device)).expand(request.num_samples, -1, -1, -1)
        captions = [request.prompt] * request.num_samples
        drawn = self.colorize(given, captions, request.sample_ids, request.draw).cpu()
        return [transfer_chroma(photo, colored) for colored in drawn]
