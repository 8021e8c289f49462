"""A folder of all broken, odd and hostile files: each reported by name and reason, none stops or swells the run."""

import ast
import logging
import os
import resource
import sys
from pathlib import Path

import pytest
from PIL import Image

from datamodules.check import main as check
from datamodules.decode import FORMATS
from datamodules.photos import PhotosDataModule
from tests.datamodules.broken_files import MAX_PIXELS, noise, write_unusable, write_usable
from tests.datamodules.test_photos import Recorder, trainer_of

# pytest puts its own filters in place of the one in datamodules.decode.
pytestmark = pytest.mark.filterwarnings("ignore:Tag data larger:UserWarning")


def peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        (tmp_path / "set" / split).mkdir(parents=True)
    Image.fromarray(noise()).save(tmp_path / "set/val/fine.png")
    return tmp_path / "set"


def data_of(root: Path, **options: object) -> PhotosDataModule:
    return PhotosDataModule(root=str(root), size_px=8, batch_size=4, max_pixels=MAX_PIXELS, **options)


@pytest.mark.parametrize(
    ("crop", "num_workers", "image_cache"), [("random", 2, "none"), ("center", 0, "memory")]
)
def test_all_unusable_files_are_reported_and_training_uses_the_others_to_its_end(
    root: Path,
    tmp_path: Path,
    crop: str,
    num_workers: int,
    image_cache: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    reasons, usable = write_unusable(root / "train"), write_usable(root / "train")
    before = peak_mib()
    data = data_of(
        root, crop=crop, num_workers=num_workers, image_cache=image_cache, max_unreadable_share=0.6
    )
    data.setup("fit")
    assert sorted(data.train_dataset.names) == [f"train/{name}" for name in usable]

    report = next(record.message for record in caplog.records if "cannot be read" in record.message)
    num_files = len(reasons) + len(usable)
    share = 100 * len(reasons) / num_files
    assert f"skipped {len(reasons)} of {num_files} images that cannot be read ({share:.1f} %)" in report
    lines = report.splitlines()[1:]
    assert len(lines) == len(reasons)
    for name, reason in reasons.items():
        path = repr(str(root / "train" / name))
        assert any(line.startswith(f"  {path}: ") and reason in line for line in lines), name

    module, steps = Recorder(), 12
    trainer_of(tmp_path, max_steps=steps).fit(module, data)
    assert len(module.seen) == steps
    assert data.skipped.num_skipped == 0
    seen = {name for batch in module.seen for name, _ in batch}
    assert seen == {f"train/{name}" for name in usable}
    assert peak_mib() - before < 300  # the bombs hold gigabytes
    "".join(seen).encode()  # every log can take the names


def test_a_folder_that_is_mostly_unreadable_stops_the_run_at_its_start(root: Path) -> None:
    for number in range(4):
        (root / "train" / f"{number}.png").write_text("version https://git-lfs.github.com/spec/v1\n")
    for number in range(2):
        Image.fromarray(noise()).save(root / "train" / f"fine_{number}.png")
    with pytest.raises(ValueError) as caught:
        data_of(root).setup("fit")
    assert str(caught.value) == (
        "4 of 6 images cannot be read (67 %), more than datamodule.max_unreadable_share=0.5 allows; the first is "
        f"'{root}/train/0.png': cannot identify it as one of {', '.join(FORMATS)} (the log lists all); "
        "replace the files, or raise datamodule.max_unreadable_share"
    )
    data = data_of(root, max_unreadable_share=0.7)
    data.setup("fit")
    assert len(data.train_dataset) == 2


def test_the_checking_tool_lists_the_same_files(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reasons, usable = write_unusable(root / "train"), write_usable(root / "train")
    assert check([f"root={root / 'train'}"]) == 1
    *lines, summary = capsys.readouterr().out.splitlines()
    assert summary == f"{len(reasons) + len(usable)} images, {len(reasons)} broken"
    assert {os.path.basename(ast.literal_eval(line.rpartition("': ")[0] + "'")) for line in lines} == set(
        reasons
    )


def test_folders_that_cannot_be_listed_are_reported(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "train" / "locked").mkdir()
    Image.fromarray(noise()).save(root / "train" / "a.png")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # as root, the mode of a folder forbids nothing
    with caplog.at_level(logging.WARNING):
        data_of(root).setup("fit")
    assert (
        f"cannot list the folder '{root}/train/locked': Permission denied; its images are left out"
        in caplog.text
    )
