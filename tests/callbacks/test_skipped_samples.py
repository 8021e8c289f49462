"""The share of unreadable training samples: logged exactly, and the end of a run when it is too large."""

import logging
import re
from collections.abc import Callable
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from callbacks.skipped_samples import SkippedSamples, TooManySkippedError
from datamodules.photos import PhotosDataModule


class Tiny(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.shares: list[float] = []

    def training_step(self, batch, batch_idx):
        return self.weight.sum() * batch["image"].mean()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if "data/skipped_share" in self.trainer.callback_metrics:
            self.shares.append(float(self.trainer.callback_metrics["data/skipped_share"]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def broken(paths: list[Path], num: int) -> None:
    for path in paths[:num]:
        path.write_bytes(path.read_bytes()[:200])


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., tuple[Tiny, PhotosDataModule]]:
    """Runs 30 steps of 4 on 20 photos (6 passes), some of which break after the preparation."""
    generator = np.random.default_rng(0)
    paths = [tmp_path / f"photos/train/{number}.png" for number in range(20)]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    (tmp_path / "photos/val").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos/val/a.png")

    def run(guard: SkippedSamples, *, num_broken: int, num_workers: int = 0) -> tuple[Tiny, PhotosDataModule]:
        module, data = (
            Tiny(),
            PhotosDataModule(root=str(tmp_path / "photos"), size_px=8, batch_size=4, num_workers=num_workers),
        )
        data.setup("fit")
        broken(paths, num_broken)
        trainer = L.Trainer(
            accelerator="cpu", max_steps=30, max_epochs=-1, callbacks=[guard], logger=False, limit_val_batches=0,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            use_distributed_sampler=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(module, data)
        return module, data

    return run


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_share_is_logged_exactly(fit, num_workers: int, caplog: pytest.LogCaptureFixture) -> None:
    guard = SkippedSamples(every_n_steps=5)
    with caplog.at_level(logging.INFO):
        module, data = fit(guard, num_broken=3, num_workers=num_workers)
    assert (data.skipped.num_read, data.skipped.num_skipped) == (120, 18)
    assert module.shares == pytest.approx([0.15] * len(module.shares))  # every fifth step ends a pass
    assert "skipped 18 of 120 training samples so far (15.00 %)" in caplog.text
    named = [record.message for record in caplog.records if "takes its place" in record.message]
    assert len(named) == 3  # each file once, however often it was asked for
    assert re.fullmatch(r"cannot read '.*/train/\d.png': .+; the next sample takes its place", named[0])


def test_above_the_limit_the_run_stops_with_count_share_files_and_advice(fit) -> None:
    with pytest.raises(TooManySkippedError) as caught:
        fit(SkippedSamples(max_share=0.04, min_samples=60, every_n_steps=1), num_broken=1)
    assert re.fullmatch(
        r"3 of 60 training samples could not be read \(5.0 %\), more than callbacks.skipped_samples.max_share=0.04 allows; "
        r"the last were '.*/train/0.png': .+; mend or remove the files that python -m datamodules.check root=DIR lists "
        r"and go on with resume=auto, or raise callbacks.skipped_samples.max_share",
        str(caught.value),
    )


@pytest.mark.parametrize(
    "guard",
    [
        SkippedSamples(max_share=0.05, min_samples=20, every_n_steps=5),  # 1 of 20 is 5 %, not more
        SkippedSamples(max_share=0.0, min_samples=121, every_n_steps=1),  # too few samples to judge
    ],
)
def test_up_to_the_limit_or_before_enough_samples_the_run_goes_on(fit, guard: SkippedSamples) -> None:
    _, data = fit(guard, num_broken=1)
    assert (data.skipped.num_read, data.skipped.num_skipped) == (120, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_share": 1.5}, r"callbacks.skipped_samples.max_share is 1.5; expected a share in \[0, 1\]"),
        ({"every_n_steps": 0}, "every_n_steps is 0, expected at least 1"),
    ],
)
def test_wrong_options(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SkippedSamples(**options)
