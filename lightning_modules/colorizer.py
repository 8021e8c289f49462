"""What all colorizers share: a drawn colour latent moved onto the photo's own lightness, at any size.

Shapes: B batch, K candidates, H/W pixels, Z latent channels, h/w latent cells.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from color.lab import grey_image, lightness, rgb_to_lab
from color.regions import blend_chroma
from color.transfer import transfer_chroma, transfer_chroma_exact, working_copy
from lightning_modules.latent import LatentModule
from lightning_modules.requests import DrawSettings, Edits, PredictRequest
from metrics.delta_e import delta_e_2000
from networks.vividness import best_candidates

log = logging.getLogger(__name__)

# What a ranker chooses from.
CHROMA_SCALES = (0.5, 0.65, 0.8, 1.0, 1.2, 1.4, 1.7, 2.0)


class Colorizer(LatentModule):
    """Colours grey photos: a method says how the colour latent is drawn, the lightness is always the input's own.

    Args:
        chroma_scale: multiplies the result's ab: 0 is grey, 1 as drawn.
        settings: as LatentModule.
    """

    def __init__(self, *, chroma_scale: float = 1.0, **settings: Any) -> None:
        super().__init__(**settings)
        self.chroma_scale = chroma_scale

    @property
    def door_options(self) -> frozenset[str]:
        return super().door_options | {"chroma", "hints", "mask", "start", "short_px"}

    def draw_colors(
        self, given: Tensor, captions: list[str], sample_ids: list[int], settings: DrawSettings | None = None
    ) -> Tensor:
        """The colour latent (B, Z, h, w) of B photos; arguments as in `colorize`."""
        raise TypeError(f"{type(self).__name__} does not say how colours are drawn")

    def draw_edited(
        self, image: Tensor, captions: list[str], sample_ids: list[int], settings: DrawSettings, edits: Edits
    ) -> Tensor:
        """As `draw_colors` for photos (B or 1, 3, H, W) in [0, 1] of B samples, under a user's edits of them.

        A method that takes hints or a start overrides this and `check_edits`. The region needs nothing here: the
        photo outside is put back at full size.
        """
        self.check_edits(hints=edits.hints is not None, start=edits.start)
        given = lightness(image).expand(len(sample_ids), -1, -1, -1)
        return self.draw_colors(given, captions, sample_ids, settings)

    def check_edits(self, *, hints: bool, start: float) -> None:
        """Raises a ValueError where this model cannot take hints or start on the way."""
        if hints:
            raise ValueError(
                f"{type(self).__name__} takes no hints=; give a prompt=, or a run of diffusing_colors with hint_prob above 0"
            )
        if start != 1:
            raise ValueError(
                f"{type(self).__name__} takes no start=, as it draws from noise; leave it out, or give a run of "
                "diffusing_colors"
            )

    @torch.no_grad()
    def colorize(
        self,
        given: Tensor,
        captions: list[str],
        sample_ids: list[int],
        settings: DrawSettings | None = None,
        names: Sequence[str] | None = None,
    ) -> Tensor:
        """Coloured images (B, 3, H, W) in [0, 1] that keep the given lightness.

        Args:
            given: lightness L*/100 (B, 1, H, W); H and W multiples of the model's grid.
            captions: B prompts, "" for none.
            sample_ids: B numbers that key the noise.
            settings: steps, guidance, negative prompt, seed, chroma scale or ranker.
            names: B names for the log of a ranker's choices.
        """
        latent = self.draw_colors(given, captions, sample_ids, settings)
        names = names or [f"photo {number}" for number in sample_ids]
        return self.finish(given, latent, settings or DrawSettings(), names)

    @torch.no_grad()
    def finish(self, given: Tensor, latent: Tensor, settings: DrawSettings, names: Sequence[str]) -> Tensor:
        """Images (B, 3, H, W) of drawn latents; a ranker's choice of the chroma scale is logged by name."""
        if settings.ranker is None:
            asked = settings.chroma_scale
            return self.candidates(given, latent, (self.chroma_scale if asked is None else asked,))[0]
        candidates = self.candidates(given, latent)
        best = best_candidates(settings.ranker, candidates)
        chosen = [f"{name} x {CHROMA_SCALES[k]:g}" for name, k in zip(names, best.tolist(), strict=True)]
        log.info("chroma=auto: %s", ", ".join(chosen))
        return candidates[best, torch.arange(len(best), device=best.device)]

    @torch.no_grad()
    def candidates(self, given: Tensor, latent: Tensor, scales: Sequence[float] = CHROMA_SCALES) -> Tensor:
        """The same drawn colours at K chroma scales (K, B, 3, H, W) in [0, 1]: the latent is decoded once.

        Args:
            given: lightness L*/100 (B, 1, H, W).
            latent: as `draw_colors` gives it.
            scales: K factors of ab.
        """
        image = self.codec.decode(latent)
        return torch.stack([transfer_chroma_exact(given, image, chroma_scale=scale) for scale in scales])

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
        self,
        given: Tensor,
        captions: list[str],
        sample_ids: list[int],
        settings: DrawSettings,
        names: Sequence[str] | None = None,
    ) -> Tensor:
        """As `colorize` at the working size `settings.short_px`, its chroma carried up to the size of `given`."""
        short_px = settings.short_px
        if short_px is None or short_px == min(given.shape[-2:]):
            return self.colorize(given, captions, sample_ids, settings, names)
        photos = (grey_image(given) * 255).round().byte().cpu()
        small = torch.cat([working_copy(p, short_px=short_px, grid_px=self.grid_px()) for p in photos])
        small_given = lightness(small.to(given.device))
        drawn = self.colorize(small_given, captions, sample_ids, settings, names).cpu()
        carried = [transfer_chroma(photo, colored) for photo, colored in zip(photos, drawn, strict=True)]
        return torch.stack(carried).to(given.device).float() / 255

    @torch.no_grad()
    def evaluated_images(self, batch: dict[str, Any], settings: DrawSettings) -> dict[str, Tensor]:
        image = batch["image"]
        given, ids, names = lightness(image), batch["index"].tolist(), batch["name"]
        rows = {"no prompt": self.colorize_at(given, [""] * len(ids), ids, settings, names)}
        if any(batch["caption"]):
            rows["caption as prompt"] = self.colorize_at(given, batch["caption"], ids, settings, names)
        ceiling = transfer_chroma_exact(given, self.codec.decode(self.codec.encode(image)))
        return {**rows, "autoencoder's ceiling": ceiling, "grey": grey_image(given)}

    @torch.no_grad()
    def predict_photo(self, photo: Tensor, request: PredictRequest) -> list[Tensor]:
        """The photo in colour at its own size: chroma is drawn at the working size and carried up edge-aware."""
        num, edits = request.num_samples, request.edits
        small = working_copy(photo, short_px=request.short_px, grid_px=self.grid_px()).to(self.device)
        latent = self.draw_edited(small, [request.prompt] * num, request.sample_ids, request.draw, edits)
        names = [request.name or f"photo {request.number}"] * num
        given = lightness(small).expand(num, -1, -1, -1)
        drawn = self.finish(given, latent, request.draw, names).cpu()
        results = [transfer_chroma(photo, colored) for colored in drawn]
        if edits.region is None:
            return results
        return [blend_chroma(photo, result, edits.region) for result in results]
