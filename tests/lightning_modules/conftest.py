"""A short real fit on one repeated batch."""

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader


class _Repeated(torch.utils.data.Dataset):
    def __init__(self, batch, length):
        self.batch, self.length = batch, length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return self.batch


@pytest.fixture
def fit(tmp_path):
    def run(module, batch, steps, ckpt_path=None, **options):
        trainer = L.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            limit_val_batches=0,
            **options,
        )
        loader = DataLoader(_Repeated(batch, steps * 4), batch_size=None)
        trainer.fit(module, loader, ckpt_path=ckpt_path)
        return trainer

    return run
