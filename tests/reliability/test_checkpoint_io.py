"""Checkpoint files: atomic, checked, and never code."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import random
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

import reliability.checkpoint_io as io
from reliability.checkpoint_io import AtomicCheckpointIO, check_disk_space, newest_whole, read_checkpoint

FORK = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
FORK_WARNING = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def save_above_limit(path: Path, messages: multiprocessing.Queue) -> None:
    """Child: saves 400 kB under a file-size limit of 200 kB and sends the message."""
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    try:
        AtomicCheckpointIO().save_checkpoint({"x": torch.zeros(100_000)}, path)
    except OSError as error:
        messages.put(str(error))


def save_for_ever(path: Path) -> None:
    """Child: replaces the checkpoint by ever new values until it is killed."""
    torch.set_num_threads(1)
    for n in itertools.count():
        AtomicCheckpointIO().save_checkpoint({"x": torch.full((300_000,), float(n))}, path)


def is_uniform(path: Path) -> bool:
    value = read_checkpoint(path)["x"]
    return torch.equal(value, value[:1].expand_as(value))


def test_round_trip_leaves_the_file_and_its_sum_alone(tmp_path):
    path = tmp_path / "new" / "last.ckpt"
    for value in (1.0, 2.0):
        AtomicCheckpointIO().save_checkpoint({"x": torch.full((3,), value), "step": 5}, path)
    loaded = AtomicCheckpointIO().load_checkpoint(path)
    assert loaded["step"] == 5
    assert torch.equal(loaded["x"], torch.full((3,), 2.0))
    files = ["last.ckpt", "last.ckpt.sha256", "previous.ckpt", "previous.ckpt.sha256"]
    assert sorted(p.name for p in path.parent.iterdir()) == files
    for name in ("last.ckpt.sha256", "previous.ckpt.sha256"):
        check = subprocess.run(["sha256sum", "-c", name], cwd=path.parent, capture_output=True, check=False)
        assert check.returncode == 0
    AtomicCheckpointIO().remove_checkpoint(path)
    assert sorted(p.name for p in path.parent.iterdir()) == files[2:]


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_damage_is_one_sentence_with_the_file_name(tmp_path, damage):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"x": torch.zeros(100)}, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data if damage == "flip" else data[:-10])
    with pytest.raises(ValueError, match=r"Checkpoint .*last.ckpt is damaged: its SHA-256 differs"):
        read_checkpoint(path)


def test_a_file_without_a_sum_loads_with_a_warning(tmp_path, caplog):
    path = tmp_path / "alone.ckpt"
    torch.save({"x": 1}, path)
    assert read_checkpoint(path) == {"x": 1}
    assert "no .sha256 file" in caplog.text
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="alone.ckpt cannot be read"):
        read_checkpoint(path)


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "hostile.ckpt"
    torch.save({"x": Payload()}, path, pickle_module=pickle)
    with pytest.raises(ValueError, match="more than tensors and plain values"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False)
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.ckpt does not exist"):
        read_checkpoint(tmp_path / "none.ckpt")


@FORK
@FORK_WARNING
def test_a_file_size_limit_keeps_the_previous_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"x": torch.ones(3)}, path)
    before = path.read_bytes()
    context = multiprocessing.get_context("fork")
    messages = context.Queue()
    process = context.Process(target=save_above_limit, args=(path, messages))
    process.start()
    message = messages.get(timeout=30)
    process.join(30)
    assert f"{path} was not written (File too large)" in message
    assert "needs 40" in message  # 400 000 bytes of zeros and the zip's own
    assert "bytes are free" in message
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "last.ckpt.sha256"]
    assert torch.equal(read_checkpoint(path)["x"], torch.ones(3))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_names_path_and_bytes(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"x": 1}, path)
    real = open
    monkeypatch.setattr(
        "builtins.open", lambda p, *a, **k: real("/dev/full" if str(p).endswith("tmp") else p, *a, **k)
    )
    with pytest.raises(
        OSError, match=r"last.ckpt was not written \(No space left on device\): it needs \d+ bytes"
    ):
        AtomicCheckpointIO().save_checkpoint({"x": torch.zeros(1000)}, path)
    monkeypatch.undo()
    assert read_checkpoint(path) == {"x": 1}


@FORK
@FORK_WARNING
def test_a_kill_at_any_moment_of_saving_leaves_readable_checkpoints(tmp_path, monkeypatch):
    # The temporary folder may be another file system, from which a rename is no single act.
    monkeypatch.setenv("TMPDIR", "/dev/shm" if Path("/dev/shm").is_dir() else str(tmp_path))
    path, moments = tmp_path / "last.ckpt", random.Random(0)
    for _ in range(20):
        AtomicCheckpointIO().save_checkpoint({"x": torch.full((300_000,), -1.0)}, path)
        process = multiprocessing.get_context("fork").Process(target=save_for_ever, args=(path,))
        process.start()
        time.sleep(moments.uniform(0.02, 0.1))
        os.kill(process.pid, signal.SIGKILL)
        process.join(30)
        assert is_uniform(path)
        assert not path.with_name("previous.ckpt").exists() or is_uniform(path.with_name("previous.ckpt"))
    AtomicCheckpointIO().save_checkpoint({"x": 1}, path)
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("rename", range(1, 7))
def test_a_stop_between_any_two_renames_leaves_valid_pairs(tmp_path, monkeypatch, rename):
    path, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    for value in (0, 1):
        AtomicCheckpointIO().save_checkpoint({"x": value}, path)
    replace, calls = os.replace, []

    def stop(source, target):
        calls.append(Path(target).name)
        if len(calls) == rename:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        AtomicCheckpointIO().save_checkpoint({"x": 2}, path)
    monkeypatch.undo()
    assert read_checkpoint(path) == {"x": 2 if "last.ckpt" in calls[:-1] else 1}
    assert read_checkpoint(previous) == {"x": 1 if "previous.ckpt" in calls[:-1] else 0}


def test_disk_space_is_checked_in_a_folder_that_is_not_there_yet(tmp_path):
    check_disk_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(OSError, match=r"need about \d+ bytes, but \d+ bytes are free; free some space"):
        check_disk_space(tmp_path / "not" / "yet", 10**18)


def save_steps(folder: Path, **steps: int) -> None:
    for name, step in steps.items():
        AtomicCheckpointIO().save_checkpoint({"global_step": step}, folder / f"{name}.ckpt")


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_the_replaced_checkpoint_stays_as_the_previous_one(tmp_path):
    for step in (1, 2, 3):
        save_steps(tmp_path, last=step, best=step)
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 3
    assert read_checkpoint(tmp_path / "previous.ckpt")["global_step"] == 2
    assert len(list(tmp_path.glob("*.ckpt"))) == 3  # best keeps none


def test_a_file_system_without_links_keeps_the_previous_one_too(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("reliability.checkpoint_io.os.link", refuse)
    for step in (1, 2, 3):
        save_steps(tmp_path, last=step)
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 3
    assert read_checkpoint(tmp_path / "previous.ckpt")["global_step"] == 2


@pytest.mark.parametrize(("best", "name"), [(1, "previous"), (5, "best")])
def test_a_damaged_checkpoint_is_named_and_the_newest_whole_one_taken(tmp_path, caplog, best, name):
    save_steps(tmp_path, best=best)
    for step in (4, 6):
        save_steps(tmp_path, last=step)
    assert newest_whole(tmp_path) == tmp_path / "last.ckpt"
    assert caplog.text == ""
    damage(tmp_path / "last.ckpt")
    assert newest_whole(tmp_path) == tmp_path / f"{name}.ckpt"
    assert "last.ckpt is damaged: its SHA-256 differs from last.ckpt.sha256" in caplog.text
    assert f"The run goes on from {tmp_path / name}.ckpt, step {max(4, best)}." in caplog.text


def test_a_damaged_checkpoint_never_takes_the_place_of_the_whole_one(tmp_path, monkeypatch):
    for step in (4, 6):
        save_steps(tmp_path, last=step)
    damage(tmp_path / "last.ckpt")
    assert newest_whole(tmp_path) == tmp_path / "previous.ckpt"
    assert (tmp_path / "last.ckpt.damaged").is_file()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)  # killed within the first save of the resumed run
    with pytest.raises(KeyboardInterrupt):
        save_steps(tmp_path, last=8)
    monkeypatch.undo()
    assert newest_whole(tmp_path) == tmp_path / "previous.ckpt"
    save_steps(tmp_path, last=8)
    assert newest_whole(tmp_path) == tmp_path / "last.ckpt"
    assert read_checkpoint(tmp_path / "previous.ckpt")["global_step"] == 4


def test_a_sector_that_cannot_be_read_is_damage_too(tmp_path, monkeypatch, caplog):
    for step in (4, 6):
        save_steps(tmp_path, last=step)
    plain = io._file_sum

    def failing(path: Path) -> str:
        if path.name == "last.ckpt":
            raise OSError(5, "Input/output error")
        return plain(path)

    monkeypatch.setattr(io, "_file_sum", failing)
    assert newest_whole(tmp_path) == tmp_path / "previous.ckpt"
    assert "last.ckpt cannot be read: Input/output error." in caplog.text


def test_a_run_is_never_started_over_because_all_checkpoints_are_damaged(tmp_path):
    assert newest_whole(tmp_path) is None
    save_steps(tmp_path, last=6)
    damage(tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"No checkpoint in .* can be read, and a run is never started over"):
        newest_whole(tmp_path)
