"""What all colorizers share: a drawn colour latent moved onto the photo's own lightness, at any size.

Shapes: B batch, S samples, K candidates, H/W pixels, Z latent channels, h/w latent cells.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from color.lab import grey_image, lightness, rgb_to_lab
from color.regions import blend_chroma
from color.transfer import transfer_chroma, transfer_chroma_exact, working_copy
from lightning_modules.base import Batch, Results, TranslationModule
from lightning_modules.chroma_choice import CHROMA_SCALES, best_chroma, load_ranker
from lightning_modules.color_edits import read_region
from lightning_modules.color_options import AUTO, ColorizationOptions
from lightning_modules.stable_diffusion import StableDiffusion
from metrics.delta_e import delta_e_2000
from tasks.colorization import Colorization


class Colorizer(StableDiffusion):
    """Colours grey photos: a method says how the colour latent is drawn, the lightness is always the input's own.

    Args:
        chroma_scale: multiplies the result's ab: 0 is grey, 1 as drawn.
        settings: as StableDiffusion.
    """

    Options = ColorizationOptions
    task = Colorization
    one_sample = True

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
        if options.chroma != AUTO:
            return options
        ranker = load_ranker(options.ranker, load)
        return replace(options, ranker_network=ranker.to(self.device).eval())

    def check_options(self, options: Any, *, is_folder: bool) -> None:
        super().check_options(options, is_folder=is_folder)
        for name in ("hints", "mask"):
            if getattr(options, name, None) and is_folder:
                raise ValueError(
                    f"{name}= belongs to one photo; leave it out, or give predict.py that photo's file as input="
                )

    @torch.no_grad()
    def results(self, batch: Batch, options: Any) -> Results:
        if batch["image"].dtype == torch.uint8:
            samples = self._of_photo(batch, options)
        else:
            prompts = [options.prompt] * len(batch["index"])
            samples = [self.colorize(batch, prompts, options, k) for k in range(options.num_samples)]
        return {"image": samples if len(samples) > 1 else samples[0]}

    @torch.no_grad()
    def rows(self, batch: Batch, options: Any) -> Iterator[tuple[str, Results]]:
        image, prompts = batch["image"], [options.prompt] * len(batch["index"])
        drawn = self.colorize(batch, prompts, options)
        yield "no prompt" if not options.prompt else "prompt", {"image": drawn}
        if any(captions := self.captions(batch)):
            yield "caption as prompt", {"image": self.colorize(batch, captions, options)}
        ceiling = self.codec.to_picture(self.codec.encode(image))
        yield "autoencoder's ceiling", {"image": transfer_chroma_exact(lightness(image), ceiling)}

    @torch.no_grad()
    def colorize(self, batch: Batch, prompts: list[str], options: Any, number: int = 0) -> Tensor:
        """Coloured images (B, 3, H, W) in [0, 1] with the lightness of batch["image"] (B, 3, H, W) in [0, 1].

        Where the working size is another than the images' the colours are drawn at it and carried up to theirs.
        """
        given, numbers = lightness(batch["image"]), self.sample_numbers(batch, number)
        if (options.short_px or self.working_px) in (None, min(given.shape[-2:])):
            latent = self.draw_colors(batch, prompts, numbers, options)
            return self.with_lightness(given, latent, options, batch["name"])
        photos = (grey_image(given) * 255).round().byte().cpu()
        carried = self._at_working_size(photos, batch, prompts, numbers, options)
        return torch.stack(carried).to(given.device).float() / 255

    def _of_photo(self, batch: Batch, options: Any) -> list[Tensor]:
        """Samples uint8 (1, 3, H, W) of one photo uint8 (1, 3, H, W)."""
        photo, num = batch["image"].cpu(), options.num_samples
        size_px = (photo.shape[-2], photo.shape[-1])
        region = read_region(options.mask, size_px) if options.mask else None
        edited = batch | {"region": region, "size_px": size_px}
        numbers = [n for k in range(num) for n in self.sample_numbers(batch, k)]
        results = self._at_working_size(photo, edited, [options.prompt] * num, numbers, options)
        if region is not None:
            results = [blend_chroma(photo[0], result, region) for result in results]
        return [result[None] for result in results]

    def _at_working_size(
        self, photos: Tensor, batch: Batch, prompts: list[str], numbers: list[int], options: Any
    ) -> list[Tensor]:
        """S samples uint8 (3, H, W) of photos uint8 (S or 1, 3, H, W): drawn small, chroma carried up edge-aware."""
        num, short_px = len(prompts), options.short_px or self.working_px or min(photos.shape[-2:])
        small = torch.cat([working_copy(p, short_px=short_px, grid_px=self.grid_px()) for p in photos])
        small = small.to(self.device)
        latent = self.draw_colors(batch | {"image": small}, prompts, numbers, options)
        given, names = lightness(small).expand(num, -1, -1, -1), batch["name"] * (num // len(photos))
        drawn = self.with_lightness(given, latent, options, names).cpu()
        return [transfer_chroma(p, c) for p, c in zip(photos.expand(num, -1, -1, -1), drawn, strict=True)]

    @torch.no_grad()
    def with_lightness(self, given: Tensor, latent: Tensor, options: Any, names: Sequence[str]) -> Tensor:
        """Images (B, 3, H, W) of colour latents and a lightness (B, 1, H, W); a ranker's choice is logged by name."""
        if options.chroma == AUTO:
            candidates = self.candidates(given, latent, CHROMA_SCALES)
            return best_chroma(candidates, options.ranker_network, names)
        scale = self.chroma_scale if options.chroma is None else options.chroma
        return self.candidates(given, latent, (scale,))[0]

    @torch.no_grad()
    def candidates(self, given: Tensor, latent: Tensor, scales: Sequence[float]) -> Tensor:
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
            self.log_mean(name, delta_e_2000(rgb_to_lab(image), truth).mean(), len(truth))

    @torch.no_grad()
    def sample_panels(self, batch: Batch) -> dict[str, Tensor]:
        return {"input": grey_image(lightness(batch["image"]))} | super().sample_panels(batch)
