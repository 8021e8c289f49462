"""Speed figures and the lines of train.log."""

from __future__ import annotations

import logging
import time

import pytest
import torch

from callbacks.csv_logger import AppendingCSVLogger
from callbacks.progress import ProgressLog
from callbacks.throughput import Throughput, peak_memory_bytes
from reliability.checkpoints import BestCheckpoint, LastCheckpoint


def test_figures_agree_with_the_clock_and_leave_validation_out(fit, tiny, tmp_path):
    module = tiny()
    step, validation = module.training_step, module.validation_step

    def slow_step(batch, batch_idx):
        time.sleep(0.01)
        return step(batch, batch_idx)

    def slow_validation(batch, batch_idx):
        time.sleep(0.4)
        validation(batch, batch_idx)

    module.training_step, module.validation_step = slow_step, slow_validation
    speed = Throughput(every_n_steps=10)
    logger = AppendingCSVLogger(tmp_path)
    fit(
        module,
        [speed, BestCheckpoint(), LastCheckpoint(3)],
        logger=logger,
        val_check_interval=5,
        log_every_n_steps=10,
    )
    figures = speed.figures
    assert 0.01 <= figures["step_s"] < 0.12  # the validations within the window would give 0.24 more
    assert figures["images_per_s"] == pytest.approx(2 / figures["step_s"])
    assert 0 <= figures["data_wait_share"] < 0.5
    assert figures["peak_memory_gib"] > 0.05
    assert speed.images_seen == 40
    rows = [row for row in logger.rows() if row["speed/step_s"]]
    assert [row["step"] for row in rows] == ["9", "19"]
    assert rows[0]["train/loss"]  # one row with the other metrics


def test_images_are_counted_on_after_resume(fit, tiny, tmp_path):
    fit(tiny(), [Throughput(), LastCheckpoint()], max_steps=7)
    speed = Throughput()
    fit(tiny(), [speed], ckpt_path=tmp_path / "checkpoints" / "last.ckpt")
    assert speed.images_seen == 40


def test_a_slow_loader_shows_as_waiting(fit, tiny):
    def slow_collate(rows):
        time.sleep(0.01)
        return {"index": torch.tensor(rows)}

    batches = torch.utils.data.DataLoader(range(40), batch_size=2, collate_fn=slow_collate)
    speed = Throughput(every_n_steps=20)
    fit(tiny(), [speed], train_loader=batches, limit_val_batches=0)
    assert speed.figures["data_wait_share"] > 0.5


def test_a_log_line_has_step_images_loss_speed_and_memory(fit, tiny, caplog):
    caplog.set_level(logging.INFO, logger="callbacks.progress")
    fit(tiny(), [Throughput(5), ProgressLog(5)])
    lines = [r.getMessage() for r in caplog.records if r.name == "callbacks.progress"]
    assert len(lines) == 4 + 2
    assert lines[0].startswith("step 5/20  images 10  loss ")
    assert lines[0].endswith(" GiB")
    assert " images/s  " in lines[0]
    assert " s/step  " in lines[0]
    assert lines[2].startswith("step 10  validation  val/loss ")


def test_a_log_line_without_throughput(fit, tiny, caplog):
    caplog.set_level(logging.INFO, logger="callbacks.progress")
    fit(tiny(), [ProgressLog(10)], accumulate_grad_batches=2, max_steps=10, limit_val_batches=0)
    lines = [r.getMessage() for r in caplog.records if r.name == "callbacks.progress"]
    assert len(lines) == 1
    assert lines[0].startswith("step 10/10  loss ")


def test_memory_is_counted_in_bytes():
    assert peak_memory_bytes(torch.device("cpu")) > 10 * 2**20


@pytest.mark.parametrize("callback", [Throughput, ProgressLog])
def test_bad_settings_are_refused(callback):
    with pytest.raises(ValueError, match="at least 1"):
        callback(every_n_steps=0)
