"""Stored colour names and captions: whole or not at all, written once by two processes, never of a wrong photo."""

import json
import logging
import multiprocessing
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datamodules import annotations
from datamodules.annotations import annotated, chroma, color_names
from datamodules.photo_dataset import PhotoDataset, PhotoTransform

Writer = Callable[..., Path]


def dataset_of(folder: Path) -> PhotoDataset:
    paths = sorted(folder.iterdir())
    return PhotoDataset(paths, names=[path.name for path in paths], transform=PhotoTransform(8))


def lengths(dataset: PhotoDataset, cache: Path, asked: list[int] | None = None) -> list[int]:
    """The sizes of the files by way of the store, noting which photos were looked at."""

    def annotate(index: int) -> int:
        if asked is not None:
            asked.append(index)
        return dataset.paths[index].stat().st_size

    return annotated(dataset, annotate, settings="sizes", unreadable=-1, cache_dir=str(cache))


@pytest.fixture
def folder(write_photos: Writer) -> Path:
    return write_photos("photos", 6)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: re.sub(r": (\d)", lambda m: f": {(int(m[1]) + 1) % 10}", text, count=1),
        lambda text: "[1, 2]",
        lambda text: json.dumps(json.loads(text)["values"]),
        lambda text: "[" * 100_000,
    ],
    ids=["cut", "empty", "digit", "list", "no checksum", "nested"],
)
def test_a_damaged_file_is_noticed_and_written_anew(
    folder: Path, tmp_path: Path, damage: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    dataset, cache = dataset_of(folder), tmp_path / "cache"
    first = lengths(dataset, cache)
    (file,) = cache.glob("*.json")
    whole = file.read_text()
    file.write_text(damage(whole))
    asked: list[int] = []
    assert lengths(dataset, cache, asked) == first
    assert asked == [0, 1, 2, 3, 4, 5]
    assert f"{str(file)!r} is damaged and will be written anew: " in caplog.text
    assert file.read_text() == whole
    assert lengths(dataset, cache, asked) == first
    assert len(asked) == 6


def test_a_photo_that_cannot_be_read_has_no_stored_value(folder: Path, tmp_path: Path) -> None:
    dataset, cache = dataset_of(folder), str(tmp_path / "cache")
    whole = {index: (color_names(dataset)[index], chroma(dataset)[index]) for index in range(6)}
    content = dataset.paths[2].read_bytes()
    dataset.paths[2].write_bytes(content[:60])
    dataset.paths[4].unlink()
    for names, values in (
        (color_names(dataset), chroma(dataset)),
        (color_names(dataset, cache_dir=cache), chroma(dataset, cache_dir=cache)),
    ):
        assert (names[2], values[2]) == (names[4], values[4]) == ((), 0.0)
        assert all((names[index], values[index]) == whole[index] for index in (0, 1, 3, 5))
    dataset.paths[2].write_bytes(content)
    dataset.paths[4].write_bytes(content)
    assert color_names(dataset, cache_dir=cache)[4] == color_names(dataset, cache_dir=cache)[2] == whole[2][0]


def _annotate_slowly(folder: Path, cache: Path, barrier: Any, answers: Any) -> None:
    dataset, asked = dataset_of(folder), []

    def annotate(index: int) -> int:
        asked.append(index)
        time.sleep(0.05)
        return index

    barrier.wait(60)
    values = annotated(dataset, annotate, settings="numbers", unreadable=-1, cache_dir=str(cache))
    answers.put((values, len(asked)))


def test_of_two_processes_at_once_one_computes_and_the_other_waits(folder: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(2), context.Queue()
    arguments = (folder, tmp_path / "cache", barrier, answers)
    workers = [context.Process(target=_annotate_slowly, args=arguments) for _ in range(2)]
    try:
        for worker in workers:
            worker.start()
        found = [answers.get(timeout=60) for _ in workers]
        for worker in workers:
            worker.join(60)
            assert worker.exitcode == 0
    finally:
        for worker in workers:
            worker.kill()
    assert [values for values, _ in found] == [[0, 1, 2, 3, 4, 5]] * 2
    assert sorted(num_asked for _, num_asked in found) == [0, 6]


def _annotate_and_hang(folder: Path, cache: Path, started: Any) -> None:
    annotations.WRITE_EVERY_S = 0.0

    def annotate(index: int) -> int:
        if index == 3:
            file = next(cache.glob("*.json"))
            file.with_name(f".{file.name}.tmp").write_text('{"sha')
            started.put(1)
            time.sleep(600)
        return index

    annotated(dataset_of(folder), annotate, settings="numbers", unreadable=-1, cache_dir=str(cache))


def test_a_killed_process_keeps_what_it_had_and_no_half_file(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = multiprocessing.get_context("fork")
    started, cache, asked = context.Queue(), tmp_path / "cache", []
    worker = context.Process(target=_annotate_and_hang, args=(folder, cache, started))
    worker.start()
    try:
        started.get(timeout=60)
    finally:
        worker.kill()
        worker.join(60)
    assert len(list(cache.glob("*.tmp"))) == 1  # killed while it wrote

    def annotate(index: int) -> int:
        asked.append(index)
        return index

    with caplog.at_level(logging.WARNING):
        values = annotated(
            dataset_of(folder), annotate, settings="numbers", unreadable=-1, cache_dir=str(cache)
        )
    assert values == [0, 1, 2, 3, 4, 5]
    assert asked == [3, 4, 5]
    assert not list(cache.glob("*.tmp"))
    assert caplog.text == ""
