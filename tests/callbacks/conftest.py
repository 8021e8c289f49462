"""A tiny module whose data depend on the batch number alone, so that resumed runs are comparable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from reliability.checkpoint_io import AtomicCheckpointIO

VAL_BATCHES = 3


class TinyModule(LightningModule):
    """A linear layer with a frozen neighbour; `fail_at` = (stage, n) raises at the n-th batch of that stage."""

    def __init__(
        self, fail_at: tuple[str, int] | None = None, error: type[BaseException] = RuntimeError
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.net = torch.nn.Linear(4, 2)
        self.frozen = torch.nn.Linear(3, 3).requires_grad_(False)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.fail_at = fail_at
        self.error = error
        self.losses: list[tuple[int, float]] = []
        self.validations: list[tuple[int, int]] = []
        self.weights_in_validation: Tensor | None = None

    def _maybe_fail(self, stage: str, batch_idx: int) -> None:
        if self.fail_at == (stage, batch_idx):
            raise self.error("asked for")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self._maybe_fail("train", batch_idx)
        x = torch.randn(2, 4, generator=torch.Generator().manual_seed(batch_idx))
        loss = (self.net(x) - 1).square().mean()
        self.losses.append((batch_idx, loss.item()))
        self.log("train/loss", loss, prog_bar=True, batch_size=2)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.weights_in_validation = self.net.weight.detach().clone()
        if self.global_step >= 10:
            self._maybe_fail("val", batch_idx)
        self.validations.append((self.global_step, batch_idx))
        self.log("val/loss", self.net.weight.square().mean(), batch_size=2)

    def sample_panels(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"input": batch["image"], "result": 1 - batch["image"]}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.net.parameters(), lr=0.05)


def make_trainer(folder: Path, callbacks: list[Callback], **options: Any) -> Trainer:
    """A quiet CPU trainer with the defaults of conf/trainer/default.yaml."""
    settings: dict[str, Any] = {
        "default_root_dir": folder,
        "max_steps": 20,
        "max_epochs": -1,
        "val_check_interval": 10,
        "check_val_every_n_epoch": None,
        "gradient_clip_val": 1.0,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(type(c).__name__.endswith("Checkpoint") for c in callbacks),
        "plugins": [AtomicCheckpointIO()],
    }
    return Trainer(**{**settings, **options}, callbacks=callbacks)


def collate(rows: list[int]) -> dict[str, Any]:
    """A batch of the project's form with 8 x 8 images."""
    index = torch.tensor(rows)
    image = (index.float() / 100).reshape(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()
    return {"image": image, "name": [f"photo{i}" for i in rows], "caption": [""] * len(rows), "index": index}


def loader(num_batches: int) -> DataLoader:
    return DataLoader(range(2 * num_batches), batch_size=2, collate_fn=collate)


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., Trainer]:
    """Runs fit(module, callbacks, ckpt_path=None, train_loader=None, **trainer options) and returns the trainer."""

    def run(
        module: LightningModule,
        callbacks: list[Callback],
        ckpt_path: Path | None = None,
        train_loader: DataLoader | None = None,
        **options: Any,
    ) -> Trainer:
        trainer = make_trainer(options.pop("folder", tmp_path), callbacks, **options)
        trainer.fit(module, train_loader or loader(20), loader(VAL_BATCHES), ckpt_path=ckpt_path)
        return trainer

    return run


@pytest.fixture
def tiny() -> type[TinyModule]:
    return TinyModule
