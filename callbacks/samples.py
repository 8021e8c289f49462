"""Sample pictures of fixed validation images, as a grid on disk and in W&B."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from callbacks.ema import EMA
from reliability.step_callback import StepCallback

CAPTION_PX = 18
GAP_PX = 4
MIN_CELL_PX = 128  # smaller pictures are enlarged by a whole factor, so that captions fit


class SamplePictures(StepCallback):
    """Draws `module.sample_panels` of the first validation images to `samples/step_XXXXXXXX.png`.

    The images are the same all along, weights are the EMA's if there is one, and neither the random state nor the
    modes of training change.

    Args:
        every_n_steps: optimiser steps between pictures; None means after each validation.
        num_images: rows of the grid.
        folder: where the pictures go; None means `samples` under the trainer's default_root_dir.

    Raises:
        ValueError: if num_images is below 1.
    """

    def __init__(
        self, every_n_steps: int | None = None, num_images: int = 6, folder: str | Path | None = None
    ) -> None:
        if num_images < 1:
            raise ValueError(
                f"callbacks.samples.num_images is {num_images}; expected at least 1, or callbacks.samples=null"
            )
        super().__init__(every_n_steps)
        self.num_images = num_images
        self.folder = folder
        self._batch: Any = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Draws if a step interval is set and due."""
        if self.is_due(trainer):
            ema = next((c for c in trainer.callbacks if isinstance(c, EMA)), None)
            with nullcontext() if ema is None else ema.applied(pl_module):
                self.draw(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws if no step interval is set; the EMA's weights are still in place here."""
        if self.every_n_steps is None and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.draw(trainer, pl_module)

    def draw(self, trainer: Trainer, module: LightningModule) -> None:
        """Writes one grid; on the first process only, and not without validation images."""
        loader = trainer.val_dataloaders
        if not trainer.is_global_zero or loader is None:
            return
        if self._batch is None:
            dataset = loader.dataset
            self._batch = loader.collate_fn([dataset[i] for i in range(min(self.num_images, len(dataset)))])
        batch = trainer.strategy.batch_to_device(self._batch, module.device)
        training, devices = module.training, [module.device] if module.device.type == "cuda" else []
        module.eval()
        try:
            with torch.no_grad(), torch.random.fork_rng(devices), trainer.precision_plugin.forward_context():
                picture = picture_grid(module.sample_panels(batch))
        finally:
            module.train(training)
        folder = Path(self.folder) if self.folder is not None else Path(trainer.default_root_dir) / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"step_{trainer.global_step:08d}.png")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("samples", [picture], step=trainer.global_step - 1)


def picture_grid(panels: Mapping[str, Tensor | Sequence[Tensor]]) -> Image.Image:
    """Rows = images, columns = panels, with the column's name above it.

    Args:
        panels: (B, 3, H, W) or (B, 1, H, W) in [0, 1] by column name, or B pictures (3 or 1, H, W) of any sizes.
    """
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
    return ImageOps.scale(Image.fromarray(array), factor, Image.Resampling.NEAREST)
