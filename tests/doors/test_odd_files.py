"""Odd files in a folder: the check, training and predict read, refuse and leave out the same ones."""

import ast
import logging
from pathlib import Path

import pytest

from datamodules.check import main as check
from datamodules.photos import PhotosDataModule
from tests.datamodules.odd_files import left_out, refused, usable, write_odd
from tests.doors.calls import predicted
from tests.runs.saved_runs import save_colorizer


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_odd(tmp_path / "set" / "train")
    return tmp_path / "set"


def test_the_check_names_them(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check([f"root={root}"]) == 1
    *lines, summary = capsys.readouterr().out.splitlines()
    num_images = len(usable()) + len(refused())
    assert summary == f"{num_images} images, {len(refused())} broken, {len(left_out())} left out"
    reasons = {}
    for line in lines:
        name, _, reason = line.rpartition("': ")
        reasons[Path(ast.literal_eval(f"{name}'")).name] = reason
    assert set(reasons) == set(refused()) | set(left_out())
    assert all(why in reasons[name] for name, (_, why) in refused().items())


def test_training_uses_the_usable_ones_and_names_the_others(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = PhotosDataModule(root=str(root), size_px=8, batch_size=4)
    data.setup("fit")
    messages = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    named = [message for message in messages if message.startswith("left out 4 pictures of a kind or name")]
    assert len(named) == 1, messages  # though train, val and test list the folder
    assert all(f"{root}/train/{name}" in named[0] for name in left_out())
    samples = [data.train_dataset[index] for index in range(len(data.train_dataset))]
    assert [sample["name"] for sample in samples if sample["skipped"]] == []
    skipped = next(message for message in messages if message.startswith("skipped "))
    names = {sample["name"] for sample in samples}
    # A folder train/ alone is divided by hash.
    assert names <= {f"train/{name}" for name in usable()}
    assert len(names) > 0.7 * len(usable())
    assert all(
        name in refused()
        for name in (line.split("'")[1].rpartition("/")[2] for line in skipped.splitlines()[1:])
    )


def test_predict_colours_the_usable_ones_and_counts_the_others(root: Path, tmp_path: Path) -> None:
    run = save_colorizer(tmp_path / "run")
    num_failed = predicted(
        run=run, input=root / "train", output=tmp_path / "out", short_px=16, steps=1, device="cpu"
    )
    assert num_failed == len(refused()) + len(left_out())
    assert len(list((tmp_path / "out").iterdir())) == len(usable())
