import os
from collections import Counter
from pathlib import Path

import pytest

from datamodules.image_files import hash_split, list_images, natural_key, split_images


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
