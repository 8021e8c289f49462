"""Trains the two players of `test_turns` on two gloo processes: `python -m ... FILE STRATEGY`."""

import sys

import lightning as L
import torch
from torch.utils.data import DataLoader

from tests.lightning_modules.test_turns import make
from tests.models import photo_batch, rows


def main(path: str, strategy: str) -> None:
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        max_steps=6,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    batch = photo_batch(2, size_px=16)
    own = rows(batch, trainer.global_rank)
    module = make()
    trainer.fit(module, DataLoader([own] * 6, batch_size=None))
    if trainer.is_global_zero:
        torch.save(module.state_dict(), path)


if __name__ == "__main__":
    main(*sys.argv[1:])
