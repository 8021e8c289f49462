"""Runs that are stopped again and again equal the run that nobody stopped, bit for bit, with everything random on."""

import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from PIL import Image

from callbacks.csv_logger import AppendingCSVLogger
from callbacks.ema import EMA
from callbacks.progress import ProgressLog
from datamodules.photos import PhotosDataModule
from lightning_modules.latent_diffusion import LatentDiffusion
from reliability.checkpoint_io import AtomicCheckpointIO
from reliability.checkpoints import BestCheckpoint, LastCheckpoint
from reliability.preemption import Preemption
from reliability.stop_signals import StopSignals
from tests.models import tiny_parts, tiny_settings
from tests.runs.same_state import assert_same_runs

NUM_STEPS, STOPS = 30, (7, 10, 13, 29)  # a validation is due at 10, and at 30 the run ends


class Watch(L.Callback):
    """Notes each loss, and sends SIGTERM in the batch that completes step `stop`."""

    def __init__(self, losses: list[float], stop: int | None) -> None:
        self.losses, self.stop = losses, stop

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if self.stop is not None and batch_idx + 1 == self.stop * trainer.accumulate_grad_batches:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(float(outputs["loss"]))


def diffusion() -> LatentDiffusion:
    """With dropout in the network and of the prompts, besides noise and timesteps."""
    torch.manual_seed(0)
    module = LatentDiffusion(
        parts=tiny_parts(), **tiny_settings(prompt_dropout=0.3, lr_schedule="cosine", num_warmup_steps=4)
    )
    for part in module.parts.unet.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.2
    return module


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, pixels = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 9), ("val", 3)):
        (root / split).mkdir()
        for number in range(count):
            image = Image.fromarray(pixels.integers(0, 256, (5, 7, 3), dtype=np.uint8))
            image.resize((28, 20)).save(root / split / f"{number}.png")
    return root


def train(run_dir: Path, photos: Path, stop: int | None, *, workers: int, accumulate: int) -> list[float]:
    """Goes on with the run in `run_dir`, up to step `stop` or to the end, and returns the losses."""
    losses: list[float] = []
    preemption, last = Preemption(), run_dir / "checkpoints" / "last.ckpt"
    with StopSignals() as signals:
        preemption.watch(signals)
        trainer = L.Trainer(
            accelerator="cpu",
            max_steps=NUM_STEPS,
            max_epochs=-1,
            accumulate_grad_batches=accumulate,
            val_check_interval=10 * accumulate,
            check_val_every_n_epoch=None,
            gradient_clip_val=1.0,
            log_every_n_steps=1,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=run_dir,
            plugins=[AtomicCheckpointIO()],
            logger=[AppendingCSVLogger(run_dir)],
            callbacks=[
                EMA(0.9),
                ProgressLog(),
                preemption,
                Watch(losses, stop),
                BestCheckpoint(),
                LastCheckpoint(),
            ],
        )
        data = PhotosDataModule(
            root=str(photos),
            size_px=16,
            batch_size=2,
            num_workers=workers,
            crop="random",
            flip_prob=0.5,
            seed=3,
        )
        start = last if last.is_file() else None
        if stop is None:
            trainer.fit(diffusion(), data, ckpt_path=start, weights_only=True)
        else:
            with pytest.raises(SIGTERMException):
                trainer.fit(diffusion(), data, ckpt_path=start, weights_only=True)
            assert trainer.global_step == stop
    return losses


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("workers", "accumulate"),
    [(2, 1), pytest.param(0, 1, marks=SLOW), pytest.param(2, 2, marks=SLOW), pytest.param(0, 2, marks=SLOW)],
)
def test_a_run_stopped_four_times_equals_the_uninterrupted_one(
    tmp_path: Path, photos: Path, workers: int, accumulate: int
) -> None:
    """Losses, weights, averages, optimiser, best value and curve."""
    whole = train(tmp_path / "whole", photos, None, workers=0, accumulate=accumulate)
    assert len(whole) == len(set(whole)) == NUM_STEPS * accumulate
    losses: list[float] = []
    for stop in (*STOPS, None):
        losses += train(tmp_path / "stopped", photos, stop, workers=workers, accumulate=accumulate)
    assert losses == whole
    assert_same_runs(tmp_path / "stopped", tmp_path / "whole")
