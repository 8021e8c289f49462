"""What a method is: a module that learns from its losses and says what it makes of a batch."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import ModelMixin, SchedulerMixin
from torch import Tensor

from datamodules.decode import decode_image
from diffusion.codecs import check_size
from diffusion.seeding import Draws, generators, stream_number
from lightning_modules.learning import Batch, LearningModule
from lightning_modules.options import NoOptions
from tasks.base import Task, batch_entry

__all__ = ["Batch", "Results", "TranslationModule"]

Results = Mapping[str, Any]
"""What a model makes of each image of a batch, by name, the main result first.

float (B, 3 or 1, H, W) in [0, 1] or uint8 (B, 3, H, W) is a picture, int64 (B, H, W) class ids, float (B, H, W) in
[0, 1] a map; a `datamodules.raster.Raster` is a picture of any size for a batch of one. A sequence of these holds
several samples of each image.
"""

# Samples of one image are keyed this far apart, so that asking for more never changes the first ones.
_SAMPLE_STRIDE = 1 << 32


class TranslationModule(LearningModule):
    """Base of all methods: one says `losses` and `results`, and in its constructor what learns (`train_only`).

    Attributes:
        Options: the words that predict, evaluate and compare take for this method.
        task: how its results are measured; None = not at all.
        takes_input: whether it works on a photo; False = it generates from nothing or a prompt.
        one_sample: whether `rows` measures one sample of each image, so that several have no effect.
        pipeline: the class of diffusers that loads an export which has all its parts, if there is one.
        working_px: side of the images that it was trained on; set by `trained_on` where a run is loaded.
    """

    Options: ClassVar[type] = NoOptions
    task: ClassVar[type[Task] | None] = None
    takes_input: ClassVar[bool] = True
    one_sample: ClassVar[bool] = False
    pipeline: str | None = None
    working_px: int | None = None

    def trained_on(self, data: Mapping[str, Any]) -> None:
        """Takes what prediction needs to know of a run's data, by the config of its data module."""
        self.working_px = data.get("size_px")

    def read_input(self, path: Path, max_pixels: int) -> Tensor:
        """An input of prediction, uint8 (3, H, W); UnreadableImage of a file that cannot be read."""
        return decode_image(path, max_pixels=max_pixels)

    def results(self, batch: Batch, options: Any) -> Results:
        """What the model makes of a batch, the main result first: the one way to use it.

        Args:
            batch: as the data module makes it; in prediction one photo, `image` uint8 (1, 3, H, W) at its own size, with
                `index` and `name`.
            options: an instance of `Options`.
        """
        raise ValueError(f"{type(self).__name__} makes no pictures; use it as the docs of its experiment say")

    def rows(self, batch: Batch, options: Any) -> Iterator[tuple[str, Results]]:
        """What evaluation measures with the name of its row, the model's own result first; drawn when asked for."""
        yield "result", self.results(batch, options)

    def check_options(self, options: Any, *, is_folder: bool) -> None:
        """Raises a ValueError for options that this model cannot follow or that would change nothing."""

    def check_without_captions(self, options: Any) -> None:
        """Raises a ValueError for options that change nothing where the data bring no captions, as in prediction."""

    def prepare(self, options: Any, load: Callable[[str], "TranslationModule"]) -> Any:
        """The options with what they name loaded; `load` gives the trained module of a run."""
        return options

    def protocol(self, options: Any) -> dict[str, Any]:
        """Fields of the task that follow from the model and its options, such as its number of classes."""
        return {}

    def encodings(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """What a latent cache may keep, by name: functions of images (B, 3, H, W) that give moments (B, 2Z, h, w)."""
        return {}

    def exported(self) -> dict[str, ModelMixin | SchedulerMixin]:
        """The networks that make an export, by folder name, into which a run of the export reads its weights."""
        raise ValueError(f"{type(self).__name__} has no export")

    def published(self) -> dict[str, ModelMixin | SchedulerMixin]:
        """What export writes: `exported`, in the form that others' code takes and ours reads back."""
        return self.exported()

    def usage(self) -> str:
        """What the README of an export says, in Markdown, beside how this project uses it."""
        return ""

    @torch.no_grad()
    def sample_panels(self, batch: Batch) -> dict[str, Tensor]:
        """Pictures (B, 3, H, W) in [0, 1] to look at, by column name: the rows of evaluation and the truth."""
        if self.task is None:
            raise ValueError(f"{type(self).__name__} draws no sample pictures; set callbacks.samples=null")
        options = self.Options(seed=self.seed) if hasattr(self.Options, "seed") else self.Options()
        try:
            datamodule = getattr(self.trainer, "datamodule", None)
        except RuntimeError:  # without a trainer, as in a notebook
            datamodule = None
        task = self.task.for_data(datamodule, **self.protocol(options))
        batch = task.posed(batch)
        panels = {name: task.picture(result, batch) for name, result in self.rows(batch, options)}
        truth = task.truth(batch)
        return panels if truth is None else panels | {"truth": truth}

    def images(self, batch: Batch, key: str = "image") -> Tensor:
        """Images of a batch as float32 in [0, 1] on the module's device; a ValueError where the data have none."""
        if key not in batch:
            raise ValueError(
                f"{type(self).__name__} needs data with {key}, and these have {', '.join(batch)}; choose another datamodule"
            )
        image = batch_entry(batch, key).to(self.device)
        return image.float() / 255 if image.dtype == torch.uint8 else image

    def cell_px(self) -> int:
        """Sides of the images that it learns from are multiples of this many pixels."""
        return 1

    def setup(self, stage: str) -> None:
        """Before a training, refuses data that lack what the task is about or whose size does not fit."""
        dataset = getattr(getattr(self.trainer, "datamodule", None), "train_dataset", None)
        if stage == "fit" and dataset is not None:
            sample = dataset[0]
            if self.task is not None:
                self.task.check_sample(sample)
            for key in ("image", "source", "image_a", "image_b"):
                if key in sample:
                    check_size(sample[key], self.cell_px())
        super().setup(stage)

    # ---- randomness

    def draws(self, batch: Batch) -> Draws:
        """The random numbers of a batch: of this training step, or in eval mode the same every time."""
        index = batch["index"].cpu().numpy()
        if not self.training:
            return Draws(self.seed, None, index, self.device)
        positions = np.arange(len(index)) + self.global_rank * len(index)
        return Draws(self.seed, self.batch_number(), positions, self.device)

    def sample_numbers(self, batch: Batch, number: int = 0) -> list[int]:
        """What keys sample `number` of each image, together with the seed."""
        return (batch["index"].cpu().numpy() + number * _SAMPLE_STRIDE).tolist()

    def generators(self, numbers: list[int], seed: int, stream: str = "sample") -> list[torch.Generator]:
        """What the noise of each sample comes from, on the module's device."""
        return generators(seed, stream_number(stream), sample=numbers, device=self.device)
