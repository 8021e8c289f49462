"""What all colorizers share: a drawn colour latent moved onto the photo's own lightness, at any size.

Shapes: B batch, K candidates, H/W pixels, Z latent channels, h/w latent cells.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from color.lab import grey_image, lightness, rgb_to_lab
from color.regions import blend_chroma
from color.transfer import transfer_chroma, transfer_chroma_exact, working_copy
from lightning_modules.base import Batch, Results, TranslationModule
from lightning_modules.color_edits import read_region
from lightning_modules.color_options import AUTO, ColorizationOptions, with_ranker
from lightning_modules.stable_diffusion import StableDiffusion, captions
from metrics.delta_e import delta_e_2000
from networks.vividness import best_candidates
from tasks.colorization import Colorization

log = logging.getLogger(__name__)

# What a ranker chooses from.
CHROMA_SCALES = (0.5, 0.65, 0.8, 1.0, 1.2, 1.4, 1.7, 2.0)


class Colorizer(StableDiffusion):
    """Colours grey photos: a method says how the colour latent is drawn, the lightness is always the input's own.

    Args:
        chroma_scale: multiplies the result's ab: 0 is grey, 1 as drawn.
        settings: as StableDiffusion.
    """

    Options = ColorizationOptions
    task = Colorization

    def __init__(self, *, chroma_scale: float = 1.0, **settings: Any) -> None:
        super().__init__(**settings)
        self.chroma_scale = chroma_scale

    def draw_colors(self, batch: Batch, prompts: list[str], numbers: list[int], options: Any) -> Tensor:
        """The colour latents (S, Z, h, w) of S samples.

        Args:
            batch: `image` (S or 1, 3, H, W) in [0, 1], of which the lightness counts; sides on the model's grid.
            prompts: S of them, "" for none.
            numbers: S, which key the noise together with the seed.
            options: an instance of `Options`.
        """
        raise TypeError(f"{type(self).__name__} does not say how colours are drawn")

    def prepare(self, options: Any, load: Callable[[str], TranslationModule]) -> Any:
        return with_ranker(options, load, self.device)

    def check_options(self, options: Any, *, is_folder: bool) -> None:
        for name in ("hints", "mask"):
            if getattr(options, name, None) and is_folder:
                raise ValueError(
                    f"{name}= belongs to one photo; leave it out, or give predict.py that photo's file as input="
                )

    @torch.no_grad()
    def results(self, batch: Batch, options: Any) -> Results:
        prompts = [options.prompt] * len(batch["index"])
        if batch["image"].dtype == torch.uint8:
            return {"image": self._photo(batch, options)}
        samples = [self.colorize(batch, prompts, options, number) for number in range(options.num_samples)]
        return {"image": samples if len(samples) > 1 else samples[0]}

    @torch.no_grad()
    def rows(self, batch: Batch, options: Any) -> Iterator[tuple[str, Results]]:
        image, prompts = batch["image"], [options.prompt] * len(batch["index"])
        drawn = self.colorize(batch, prompts, options)
        yield "no prompt" if not options.prompt else "prompt", {"image": drawn}
        if any(captions(batch)):
            yield "caption as prompt", {"image": self.colorize(batch, captions(batch), options)}
        ceiling = self.codec.to_picture(self.codec.encode(image))
        yield "autoencoder's ceiling", {"image": transfer_chroma_exact(lightness(image), ceiling)}

    @torch.no_grad()
    def colorize(self, batch: Batch, prompts: list[str], options: Any, number: int = 0) -> Tensor:
        """Coloured images (B, 3, H, W) in [0, 1] with the lightness of batch["image"] (B, 3, H, W) in [0, 1].

        Where the working size is another than the images' the colours are drawn at it and carried up to theirs.
        """
        image = batch["image"]
        given, numbers = lightness(image), self.sample_numbers(batch, number)
        short_px = options.short_px or self.working_px
        if short_px is None or short_px == min(image.shape[-2:]):
            latent = self.draw_colors(batch, prompts, numbers, options)
            return self.with_lightness(given, latent, options, batch["name"])
        photos = (grey_image(given) * 255).round().byte().cpu()
        small = torch.cat([working_copy(p, short_px=short_px, grid_px=self.grid_px()) for p in photos])
        small_batch = batch | {"image": small.to(given.device)}
        latent = self.draw_colors(small_batch, prompts, numbers, options)
        drawn = self.with_lightness(lightness(small_batch["image"]), latent, options, batch["name"]).cpu()
        carried = [transfer_chroma(photo, colored) for photo, colored in zip(photos, drawn, strict=True)]
        return torch.stack(carried).to(given.device).float() / 255

    def _photo(self, batch: Batch, options: Any) -> Tensor | list[Tensor]:
        """Samples uint8 (1, 3, H, W) of one photo uint8 (1, 3, H, W): chroma is carried up edge-aware."""
        photo, num = batch["image"][0].cpu(), options.num_samples
        short_px = options.short_px or self.working_px or min(photo.shape[-2:])
        small = working_copy(photo, short_px=short_px, grid_px=self.grid_px()).to(self.device)
        region = read_region(options.mask, (photo.shape[-2], photo.shape[-1])) if options.mask else None
        edited = batch | {"image": small, "region": region, "size_px": tuple(photo.shape[-2:])}
        numbers = [n for k in range(num) for n in self.sample_numbers(batch, k)]
        latent = self.draw_colors(edited, [options.prompt] * num, numbers, options)
        given = lightness(small).expand(num, -1, -1, -1)
        drawn = self.with_lightness(given, latent, options, batch["name"] * num).cpu()
        results = [transfer_chroma(photo, colored) for colored in drawn]
        if region is not None:
            results = [blend_chroma(photo, result, region) for result in results]
        return results[0][None] if num == 1 else [result[None] for result in results]

    @torch.no_grad()
    def with_lightness(self, given: Tensor, latent: Tensor, options: Any, names: Sequence[str]) -> Tensor:
        """Images (B, 3, H, W) of colour latents and a lightness (B, 1, H, W); a ranker's choice is logged by name."""
        if options.chroma != AUTO:
            scale = self.chroma_scale if options.chroma is None else options.chroma
            return self.candidates(given, latent, (scale,))[0]
        candidates = self.candidates(given, latent)
        best = best_candidates(options.ranker_network, candidates)
        chosen = [f"{name} x {CHROMA_SCALES[k]:g}" for name, k in zip(names, best.tolist(), strict=True)]
        log.info("chroma=auto: %s", ", ".join(chosen))
        return candidates[best, torch.arange(len(best), device=best.device)]

    @torch.no_grad()
    def candidates(self, given: Tensor, latent: Tensor, scales: Sequence[float] = CHROMA_SCALES) -> Tensor:
        """The same drawn colours at K chroma scales (K, B, 3, H, W) in [0, 1]: the latent is decoded once."""
        image = self.codec.to_picture(latent)
        return torch.stack([transfer_chroma_exact(given, image, chroma_scale=scale) for scale in scales])

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Colours the split without prompts: CIEDE2000 to the truth, beside that of the grey photos."""
        super().test_step(batch, batch_idx)
        truth = rgb_to_lab(batch["image"])
        result = self.colorize(batch, [""] * len(truth), self.Options(seed=self.seed))
        compared = {"delta_e2000": result, "grey_delta_e2000": grey_image(lightness(batch["image"]))}
        for name, image in compared.items():
            error = delta_e_2000(rgb_to_lab(image), truth).mean()
            self.log(f"test/{name}", error, batch_size=len(truth), sync_dist=True)

    @torch.no_grad()
    def sample_panels(self, batch: Batch) -> dict[str, Tensor]:
        return {"input": grey_image(lightness(batch["image"]))} | super().sample_panels(batch)
