"""What the methods that make a picture from its partner share: sources and conditions as latents, any size, rows.

Shapes: B batch, H/W pixels, Z latent channels, h/w latent cells.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from color.classes import painted
from color.transfer import working_size
from datamodules.decode import decode_image, decode_mask
from datamodules.image_files import by_stem
from lightning_modules.base import Batch, Results, TranslationModule
from lightning_modules.stable_diffusion import StableDiffusion
from lightning_modules.translation_options import TranslationOptions
from tasks.translation import Translation

_MAX_PIXELS = 64_000_000


class Translator(StableDiffusion):
    """Makes a target from a source: a method says how its latent is drawn, at a working size, decoded at the input's own.

    Args:
        conds: further pictures of a pair, by the names that the data give them.
        settings: as StableDiffusion.

    Attributes:
        class_maps: the inputs that hold class ids, which are shown in their colours; set by `trained_on`.
    """

    Options = TranslationOptions
    task = Translation
    class_maps: tuple[str, ...] = ()

    def __init__(self, *, conds: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(**settings)
        self.conds = tuple(conds)

    def draw_target(self, batch: Batch, prompts: list[str], numbers: list[int], options: Any) -> Tensor:
        """The latents (B, Z, h, w) of B targets.

        Args:
            batch: the pictures that `inputs` names, (B, 3, H, W) in [0, 1]; sides on the model's grid.
            prompts: B of them, "" for none.
            numbers: B, which key the noise together with the seed.
            options: an instance of `Options`.
        """
        raise TypeError(f"{type(self).__name__} does not say how targets are drawn")

    def inputs(self) -> tuple[str, ...]:
        """What a target is made from, by the names of a batch; the first is the input of prediction."""
        return ("source", *self.conds)

    def given(self, options: Any) -> tuple[str, ...]:
        """What a result is made from under these options."""
        return self.inputs()

    # ---- use

    def trained_on(self, data: Mapping[str, Any]) -> None:
        super().trained_on(data)
        swapped = {"source": "image", "target": "source"} if data.get("reverse") else {"target": "image"}
        self.class_maps = tuple(swapped.get(name, name) for name in data.get("class_maps") or ())

    def read_input(self, path: Path, max_pixels: int) -> Tensor:
        return self._picture(self.inputs()[0], path, max_pixels)

    def _picture(self, name: str, path: Path, max_pixels: int = _MAX_PIXELS) -> Tensor:
        """An input of this name from a file, as training reads it."""
        return (
            painted(decode_mask(path, max_pixels))
            if name in self.class_maps
            else decode_image(path, max_pixels)
        )

    @torch.no_grad()
    def results(self, batch: Batch, options: Any) -> Results:
        prompts = [options.prompt] * len(batch["index"])
        samples = [self.translate(batch, prompts, options, k) for k in range(options.num_samples)]
        return {"image": samples if len(samples) > 1 else samples[0]}

    @torch.no_grad()
    def rows(self, batch: Batch, options: Any) -> Iterator[tuple[str, Results]]:
        yield from super().rows(batch, options)
        if any(captions := self.captions(batch)):
            yield "caption as prompt", {"image": self.translate(batch, captions, options)}
        yield "autoencoder's ceiling", {"image": self.codec.to_picture(self.codec.encode(batch["image"]))}

    @torch.no_grad()
    def translate(self, batch: Batch, prompts: list[str], options: Any, number: int = 0) -> Tensor:
        """Targets (B, 3, H, W) in [0, 1] of a batch of data, or of a photo uint8 (1, 3, H, W) as `image`."""
        given, size_px = self.at_working_size(batch, options)
        latent = self.draw_target(batch | given, prompts, self.sample_numbers(batch, number), options)
        return self.codec.to_picture(latent, size_px)

    def at_working_size(self, batch: Batch, options: Any) -> tuple[Batch, tuple[int, int]]:
        """The pictures of `inputs` as the network sees them, and (H, W) of the results."""
        given = self.from_files(batch, options) if batch["image"].dtype == torch.uint8 else batch
        pictures = {name: self.images(given, name) for name in self.given(options)}
        height, width = next(iter(pictures.values())).shape[-2:]
        short_px = options.short_px or self.working_px or min(height, width)
        if short_px == min(height, width) and batch["image"].dtype != torch.uint8:
            return pictures, (height, width)
        size_px = working_size((height, width), short_px=short_px, grid_px=self.grid_px())

        def resized(name: str) -> Tensor:
            # Between two classes there is no colour.
            smooth = {"mode": "bilinear", "antialias": True}
            how: dict[str, Any] = {"mode": "nearest-exact"} if name in self.class_maps else smooth
            return F.interpolate(pictures[name], size_px, **how)

        return {name: resized(name) for name in pictures}, (height, width)

    def from_files(self, batch: Batch, options: Any) -> Batch:
        """The photo uint8 (1, 3, H, W) of a prediction under its name, with further conditions from files of its size."""
        photo = batch["image"]
        first, *others = self.given(options)
        pictures = {first: photo}
        for name in others:
            file = options.cond_file(name, batch["name"][0])
            pictures[name] = self._picture(name, file)[None]
            if pictures[name].shape != photo.shape:
                height, width = pictures[name].shape[-2:]
                raise ValueError(
                    f"{str(file)!r} has {width}x{height} pixels, but its input {photo.shape[-1]}x{photo.shape[-2]}; save both at "
                    "one size"
                )
        return batch | pictures

    @torch.no_grad()
    def sample_panels(self, batch: Batch) -> dict[str, Tensor]:
        given, _ = self.at_working_size(batch, self.Options())
        return given | super().sample_panels(batch)

    def protocol(self, options: Any) -> dict[str, Any]:
        return {"paired": True}

    def prepare(self, options: Any, load: Callable[[str], TranslationModule]) -> Any:
        places = options.conds or {}
        others = self.given(options)[1:]
        if unknown := sorted(places.keys() - set(others)):
            raise ValueError(
                f"conds= names {unknown[0]}, but this model takes {', '.join(others) or 'none'} beside its input"
            )
        folders = {name: by_stem(Path(place)) for name, place in places.items() if Path(place).is_dir()}
        return replace(options, folders=folders)

    # ---- latents

    def latents(self, batch: Batch, names: Sequence[str]) -> Tensor | None:
        """Posterior means of pictures of a batch, scaled, one behind the other (B, n Z, h, w); None of no pictures."""
        found = [self.codec.sample(self.moments(batch, name)) for name in names]
        return torch.cat(found, dim=1) if found else None
