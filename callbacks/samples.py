"""Sample pictures of fixed validation images, as a grid on disk and in W&B."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from callbacks.ema import EMA

CAPTION_PX = 18
GAP_PX = 4
MIN_CELL_PX = 128  # smaller pictures are enlarged by a whole factor, so that captions fit


class SamplePictures(Callback):
    """Draws `module.sample_panels` of the first validation images to `samples/step_XXXXXXXX.png`.

    The images are the same all along, weights are the EMA's if there is one, and neither the random state nor the
    modes of training change.

    Args:
        every_n_steps: optimiser steps between pictures; None means after each validation.
        num_images: rows of the grid.
        folder: where the pictures go; None means `samples` under the trainer's default_root_dir.

    Raises:
        ValueError: if num_images or every_n_steps is below 1.
    """

    def __init__(
        self, every_n_steps: int | None = None, num_images: int = 6, folder: str | Path | None = None
    ) -> None:
        if num_images < 1:
            raise ValueError(
                f"SamplePictures num_images is {num_images}, expected at least 1; "
                "set callbacks.samples.num_images=6 or callbacks.samples=null."
            )
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(
                f"SamplePictures every_n_steps is {every_n_steps}, expected null or at least 1; "
                "set callbacks.samples.every_n_steps=null."
            )
        self.every_n_steps = every_n_steps
        self.num_images = num_images
        self.folder = folder
        self._batch: Any = None
        self._batch_start_step = 0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remembers the step, to see at the end whether this batch completed one."""
        self._batch_start_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draws if a step interval is set and due."""
        step = trainer.global_step
        if self.every_n_steps is None or step == self._batch_start_step or step % self.every_n_steps:
            return
        ema = next((c for c in trainer.callbacks if isinstance(c, EMA)), None)
        if ema is None:
            self.draw(trainer, pl_module)
        else:
            with ema.applied(pl_module):
                self.draw(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws if no step interval is set; the EMA's weights are still in place here."""
        if self.every_n_steps is None and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.draw(trainer, pl_module)

    def draw(self, trainer: Trainer, module: LightningModule) -> None:
        """Writes one grid; on the first process only."""
        if not trainer.is_global_zero:
            return
        if self._batch is None:
            self._batch = first_images(trainer.val_dataloaders, self.num_images)
        if self._batch is None:
            return
        batch = trainer.strategy.batch_to_device(self._batch, module.device)
        with evaluating(module), trainer.precision_plugin.forward_context():
            panels = module.sample_panels(batch)
        picture = picture_grid(panels)
        folder = Path(self.folder) if self.folder is not None else Path(trainer.default_root_dir) / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"step_{trainer.global_step:08d}.png")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("samples", [picture], step=trainer.global_step - 1)


@contextmanager
def evaluating(module: LightningModule) -> Iterator[None]:
    """No gradients, eval mode and a copy of the random state; all is as before afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    devices = [module.device] if module.device.type == "cuda" else []
    try:
        module.eval()
        with torch.no_grad(), torch.random.fork_rng(devices):
            yield
    finally:
        for part, training in modes:
            part.training = training


def first_images(loaders: Any, num_images: int) -> Any:
    """A batch of the first `num_images` samples of the (first) validation loader; None without a loader."""
    loader = loaders[0] if isinstance(loaders, (list, tuple)) and loaders else loaders
    if not loader:
        return None
    dataset = getattr(loader, "dataset", None)
    if dataset is not None and hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        return loader.collate_fn([dataset[i] for i in range(min(num_images, len(dataset)))])
    first = next(iter(loader))
    return {k: v[:num_images] if isinstance(v, (Tensor, list)) else v for k, v in first.items()}


def picture_grid(panels: Mapping[str, Tensor | Sequence[Tensor]]) -> Image.Image:
    """Rows = images, columns = panels, with the column's name above it.

    Args:
        panels: (B, 3, H, W) or (B, 1, H, W) in [0, 1] by column name, or B pictures (3 or 1, H, W) of any sizes.

    Raises:
        ValueError: without panels, or if they differ in number or are no pictures.
    """
    counts = {len(panel) for panel in panels.values()}
    if len(counts) != 1 or any(
        p.ndim != 3 or p.shape[0] not in (1, 3) for panel in panels.values() for p in panel
    ):
        shapes = {name: [tuple(p.shape) for p in panel] for name, panel in panels.items()}
        raise ValueError(
            f"sample_panels returned {shapes}, expected panels (B, 3, H, W) of one B; set callbacks.samples=null."
        )
    columns = [[_to_picture(image) for image in panel] for panel in panels.values()]
    widths = [max(picture.width for picture in column) for column in columns]
    heights = [max(picture.height for picture in row) for row in zip(*columns, strict=True)]
    lefts = list(itertools.accumulate([GAP_PX, *[width + GAP_PX for width in widths]]))
    tops = list(itertools.accumulate([CAPTION_PX, *[height + GAP_PX for height in heights]]))
    grid = Image.new("RGB", (lefts[-1], tops[-1]), "white")
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default()
    for left, name, column in zip(lefts[:-1], panels, columns, strict=True):
        draw.text((left, 3), name, fill="black", font=font)
        for top, picture in zip(tops[:-1], column, strict=True):
            grid.paste(picture, (left, top))
    return grid


def _to_picture(image: Tensor) -> Image.Image:
    """(1 or 3, H, W) in [0, 1] to 8 bits, enlarged to at least MIN_CELL_PX wide."""
    values = image.detach().float().nan_to_num().clamp(0, 1).expand(3, -1, -1)
    array = (values * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    factor = -(-MIN_CELL_PX // array.shape[1])
    picture = Image.fromarray(array)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
