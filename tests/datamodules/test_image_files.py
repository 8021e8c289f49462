import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.decode import HEIF, check_image, decode_image
from datamodules.image_files import hash_split, list_images, natural_key, other_pictures, split_images
from datamodules.unreadable import UnreadableImage


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_listing_is_recursive_natural_and_ignores_hidden_and_other_files(tmp_path: Path) -> None:
    touch(
        tmp_path, "b/img10.png", "b/img2.JPG", "a.Tiff", ".hidden.png", ".cache/x.png", "notes.txt", "c.webp"
    )
    names = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert names == ["a.Tiff", "b/img2.JPG", "b/img10.png", "c.webp"]


def test_natural_key_orders_any_names() -> None:
    names = ["a10b", "a2b", "10", "9", "a", "A2b", "", "a\u00b2", "a02b"]
    assert sorted(names, key=natural_key)[:3] == ["", "9", "10"]


def test_link_loops_and_newlines_in_names(tmp_path: Path) -> None:
    touch(tmp_path, "sub/two\nlines.png")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    assert [path.name for path in list_images(tmp_path)] == ["gone.png", "two\nlines.png"]


def test_names_that_are_no_text(tmp_path: Path) -> None:
    try:
        touch(tmp_path, os.fsdecode(b"\xff.png"))
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    assert len(split_images(tmp_path, "train")) == 1


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing' does not exist; set datamodule.root"):
        list_images(tmp_path / "missing")
    with pytest.raises(ValueError, match="is empty; put images"):
        list_images(tmp_path)
    touch(tmp_path, "a.txt")
    with pytest.raises(ValueError, match="holds 1 files but no image"):
        list_images(tmp_path)
    with pytest.raises(NotADirectoryError, match=r"a.txt' is a file; set datamodule.root"):
        list_images(tmp_path / "a.txt")


def test_hash_split_has_its_shares_and_is_stable(tmp_path: Path) -> None:
    counts = Counter(hash_split(f"photo_{number}.jpg") for number in range(10000))
    assert counts["train"] == pytest.approx(9000, abs=100)
    assert counts["val"] == pytest.approx(500, abs=80)
    touch(tmp_path, *(f"{number}.png" for number in range(200)))
    before = {split: split_images(tmp_path, split) for split in ("train", "val", "test")}
    assert sum(map(len, before.values())) == 200
    touch(tmp_path, "new.png")
    for split, paths in before.items():
        assert set(paths) <= set(split_images(tmp_path, split))


def test_split_folders_and_what_stands_in(tmp_path: Path) -> None:
    touch(tmp_path, "train/a.png", "val/b.png")
    assert split_images(tmp_path, "train") == [tmp_path / "train/a.png"]
    assert split_images(tmp_path, "test") == split_images(tmp_path, "val") == [tmp_path / "val/b.png"]
    touch(tmp_path, "test/c.png")
    assert split_images(tmp_path, "test") == [tmp_path / "test/c.png"]


def test_a_test_folder_alone_has_no_training_images(tmp_path: Path) -> None:
    touch(tmp_path, "test/c.png")
    assert split_images(tmp_path, "train") == []
    assert split_images(tmp_path, "val") == [tmp_path / "test/c.png"]


def test_a_class_named_train_is_no_split(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{kind}/{number}.png" for kind in ("car", "train") for number in range(40)))
    kinds = {path.parent.name for path in split_images(tmp_path, "train")}
    assert kinds == {"car", "train"}


@pytest.mark.parametrize("num", [1, 2, 3, 5])
def test_tiny_sets_have_all_splits(tmp_path: Path, num: int) -> None:
    touch(tmp_path, *(f"train/{number}.png" for number in range(num)))
    splits = [split_images(tmp_path, split) for split in ("train", "val", "test")]
    assert all(splits)
    if num >= 3:
        assert sum(map(len, splits)) == len({path for paths in splits for path in paths}) == num


def test_all_that_is_read_is_listed_and_other_pictures_are_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read = ["a.jfif", "a.gif", "a.AVIF", "a.jp2", "a.ppm", "a.tga", "a.apng"]
    touch(tmp_path, *read, "a.psd", "sub/b.NEF", "a.jxl", "film.mpg", "LICENSE", "a.txt", ".hidden.psd")
    Image.new("RGB", (2, 2)).save(tmp_path / "no_suffix", "PNG")
    (tmp_path / "a.txt").write_bytes((tmp_path / "no_suffix").read_bytes())
    os.mkfifo(tmp_path / "pipe")
    for _ in range(2):
        assert sorted(path.name for path in list_images(tmp_path)) == sorted(read)
    messages = [record.message for record in caplog.records]
    assert len(messages) == 1
    assert messages[0].startswith("left out 4 pictures of a kind or name that is not read: ")
    names = ["a.jxl", "a.psd", "no_suffix", "b.NEF"]
    assert sorted(path.name for path in other_pictures(tmp_path)) == sorted(names)
    assert all(f"{name}'" in messages[0] for name in names)


def test_many_left_out_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, *(f"{number}.psd" for number in range(25)), "a.png")
    list_images(tmp_path)
    assert "left out 25 pictures" in caplog.text
    assert caplog.text.count(".psd") == 10
    assert " and 15 more" in caplog.text


@pytest.mark.skipif(bool(HEIF), reason="pillow-heif is installed")
def test_heic_says_what_reads_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a.HEIC", "b.heif", "c.png")
    list_images(tmp_path)
    assert "left out 2 pictures" in caplog.text
    assert "for HEIC install the package pillow-heif" in caplog.text


@pytest.mark.skipif(not HEIF, reason="pillow-heif is not installed")
def test_heic_is_read(tmp_path: Path) -> None:
    for name in ("a.HEIC", "b.heif"):
        Image.new("RGB", (48, 32), (200, 40, 40)).save(tmp_path / name, "HEIF")
    assert len(list_images(tmp_path)) == 2
    for path in list_images(tmp_path):
        assert check_image(path, max_pixels=10_000) == (32, 48)
        image = decode_image(path, 10_000).float().mean(dim=(1, 2))
        assert (image - torch.tensor([200.0, 40.0, 40.0])).abs().max() < 8


@pytest.mark.skipif(not HEIF, reason="pillow-heif is not installed")
def test_heic_of_another_size_than_its_header_says_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.heic"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)).save(path, "HEIF")
    content = bytearray(path.read_bytes())
    content[content.index(b"clap") + 4 + 27] = 1  # a fraction that makes no offset of the visible part
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match="damaged: its header says"):
        decode_image(path, 10_000)


HARD_NAMES = [
    b"a b.png",
    b"'q\".png",
    b"a=b,c.png",
    b"[x]{y}$z.png",
    b"-dash.png",
    b"%s%d.png",
    b"two\nlines.png",
]
HARD_NAMES += ["\u00fcn\u00ef.png".encode(), "\u56fe.png".encode(), "e\u0301.png".encode(), b"\xff\xfe.png"]


def test_hard_names_are_checked_under_the_plainest_locale(tmp_path: Path) -> None:
    for name in HARD_NAMES:
        try:
            Image.new("RGB", (2, 2)).save(tmp_path / os.fsdecode(name), "PNG")
        except OSError:
            pytest.skip("this file system takes only UTF-8 names")
        with (tmp_path / os.fsdecode(b"cut_" + name)).open("wb") as file:
            file.write(b"no picture")
    command = [sys.executable, "-m", "datamodules.check", f"root={tmp_path}"]
    environment = os.environ | {"LC_ALL": "C", "PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert done.stdout.endswith(b"22 images, 11 broken\n")
