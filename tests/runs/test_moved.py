"""Run folders from before a class moved: they load, resume, and keep what their callbacks stored."""

import re
from pathlib import Path

import pytest

from reliability.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from runs import moved
from runs.build import located
from runs.config import read_config
from runs.moved import upgraded
from tests.runs.conftest import TINY, Door


@pytest.mark.parametrize("old", moved.TARGETS)
def test_a_moved_target_names_a_class_of_today(old: str) -> None:
    new = moved.TARGETS[old]
    assert located(new) is not None
    assert located(old) is None
    assert new not in moved.TARGETS


def test_keys_are_renamed_or_dropped_at_any_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moved, "TARGETS", {"a.b.Old": "a.b.New"})
    monkeypatch.setattr(moved, "KEYS", {"a.b.New": {"size": "size_px", "gone": None}})
    node = {"_target_": "a.b.Old", "size": 3, "gone": 1, "kept": {"size": 4}}
    wanted = {"_target_": "a.b.New", "size_px": 3, "kept": {"size": 4}}
    assert upgraded({"parts": [node], "size": 5}) == {"parts": [wanted], "size": 5}


def test_a_run_folder_of_the_old_names_resumes_with_its_best_value(door: Door, tmp_path: Path) -> None:
    command = ("trainer.val_check_interval=2", "datamodule.val_batch_size=16", "callbacks.samples=null")
    assert door(*TINY, *command, "run_dir=run") == 0
    path = tmp_path / "run" / "config.yaml"
    text = path.read_text()
    for old, new in moved.TARGETS.items():
        text = text.replace(new, old)
    assert (
        len(re.findall(r"_target_: callbacks\.(checkpoint_io|checkpoints|finite_guard|preemption)\.", text))
        == 5
    )
    path.write_text(text)
    assert not re.search(r"callbacks\.(checkpoint|finite|preempt)", str(read_config(path)))

    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    checkpoint = read_checkpoint(best)
    assert checkpoint["callbacks"].keys() == {"EMA", "Throughput", "BestCheckpoint", "LastCheckpoint"}
    checkpoint["callbacks"]["BestCheckpoint"]["best_value"] = -1.0  # no validation improves on it
    AtomicCheckpointIO().save_checkpoint(checkpoint, best)
    assert door("resume=run", "trainer.max_steps=4") == 0
    assert read_checkpoint(best)["callbacks"]["BestCheckpoint"]["best_value"] == -1.0
    assert read_checkpoint(best.with_name("last.ckpt"))["callbacks"]["Throughput"] == {"images_seen": 8}
