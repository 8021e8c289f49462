"""metrics.csv: appended, widened, cut at the step of a resume."""

from __future__ import annotations

import torch

from callbacks.csv_logger import AppendingCSVLogger
from callbacks.progress import ProgressLog
from reliability.checkpoints import LastCheckpoint


def test_a_row_is_on_disk_at_once_and_new_columns_widen_the_file(tmp_path):
    logger = AppendingCSVLogger(tmp_path)
    logger.log_metrics({"loss": torch.tensor(0.5)}, step=0)
    assert (tmp_path / "metrics.csv").read_text().split() == ["step,loss", "0,0.5"]
    logger.log_metrics({"val/loss": 2.0}, step=1)
    assert (tmp_path / "metrics.csv").read_text().split() == ["step,loss,val/loss", "0,0.5,", "1,,2.0"]
    assert logger.rows()[1] == {"step": "1", "loss": "", "val/loss": "2.0"}


def test_a_second_logger_appends_and_drops_a_row_that_a_kill_cut(tmp_path):
    AppendingCSVLogger(tmp_path).log_metrics({"loss": 0.5, "lr": 1.0}, step=0)
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text() + "1,0.2")
    AppendingCSVLogger(tmp_path).log_metrics({"lr": 1.0, "loss": 0.25}, step=1)
    assert path.read_text().split() == ["step,loss,lr", "0,0.5,1.0", "1,0.25,1.0"]


def test_a_cut_header_starts_the_file_again(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,lo")
    AppendingCSVLogger(tmp_path).log_metrics({"loss": 0.5}, step=3)
    assert (tmp_path / "metrics.csv").read_text().split() == ["step,loss", "3,0.5"]


def test_the_curve_of_a_killed_and_resumed_run_equals_the_whole_one(fit, tiny, tmp_path):
    def run(folder, **options):
        callbacks = [ProgressLog(), LastCheckpoint(4)]
        fit(tiny(), callbacks, folder=folder, logger=AppendingCSVLogger(folder), **options)

    run(tmp_path / "whole")
    run(tmp_path / "cut", max_steps=8)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    at_8 = last.rename(tmp_path / "at_8.ckpt")
    run(tmp_path / "cut", max_steps=11, ckpt_path=at_8)  # killed at 11 with the file of step 8
    run(tmp_path / "cut", ckpt_path=at_8)
    whole = (tmp_path / "whole" / "metrics.csv").read_text()
    assert (tmp_path / "cut" / "metrics.csv").read_text() == whole
    assert len(whole.splitlines()) == 1 + 20 + 2


def test_a_test_that_is_repeated_takes_the_place_of_the_earlier_row_alone(tmp_path):
    logger = AppendingCSVLogger(tmp_path)
    for row, step in (({"train/loss": 0.5}, 59), ({"val/loss": 0.6}, 59), ({"test/psnr": 20.0}, 59)):
        logger.log_metrics(row, step)
    AppendingCSVLogger(tmp_path).drop_metrics("test/")
    rows = AppendingCSVLogger(tmp_path).rows()
    assert [(r["step"], r["train/loss"], r["val/loss"]) for r in rows] == [
        ("59", "0.5", ""),
        ("59", "", "0.6"),
    ]
