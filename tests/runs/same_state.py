"""Bitwise comparison of what two runs left behind."""

import csv
from pathlib import Path
from typing import Any

import torch

from reliability.checkpoint_io import read_checkpoint

ABOUT_THE_PROCESS = (
    "speed",
    "images_per_s",
)  # of the figures; and loop counters depend on where a run was stopped
NOT_COMPARED = ("loops", "pytorch-lightning_version")


def assert_same(found: Any, expected: Any, path: str = "") -> None:
    """Tensors bit for bit, all else by equality; the message names the place that differs."""
    if isinstance(expected, dict):
        assert isinstance(found, dict), path
        assert list(found) == list(expected), path
        for key in expected:
            assert_same(found[key], expected[key], f"{path}/{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), path
        for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
            assert_same(ours, theirs, f"{path}/{index}")
    elif isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype, path
        assert torch.equal(found, expected), path
    else:
        assert found == expected, path


def assert_same_runs(found: Path, expected: Path) -> None:
    """Both checkpoints, with weights, optimiser, averages and best value, and the curve of two run folders."""
    for name in ("last.ckpt", "best.ckpt"):
        ours, theirs = (state(folder / "checkpoints" / name) for folder in (found, expected))
        assert_same(ours, theirs, name)
    assert_same(curve(found), curve(expected), "metrics.csv")


def state(path: Path) -> dict[str, Any]:
    """A checkpoint without what depends on the process that wrote it."""
    checkpoint = {k: v for k, v in read_checkpoint(path).items() if k not in NOT_COMPARED}
    checkpoint["figures"] = {
        k: v for k, v in sorted(checkpoint["figures"].items()) if not k.startswith(ABOUT_THE_PROCESS)
    }
    return checkpoint


def curve(run_dir: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv that hold losses and metrics."""
    path = run_dir / "metrics.csv"
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        table = [
            {k: v for k, v in row.items() if v and not k.startswith(ABOUT_THE_PROCESS)}
            for row in csv.DictReader(file)
        ]
    return [row for row in table if set(row) - {"step", "epoch"}]


def steps_done(run_dir: Path) -> int:
    """Optimiser steps that the curve shows as finished; Lightning counts them from 0."""
    return max((int(row["step"]) + 1 for row in curve(run_dir) if "train/loss" in row), default=0)
