from pathlib import Path

import pytest

from datamodules.captions import PhotoCaption, class_caption, class_folder, metadata_captions, singular

TEMPLATE = "a photo of {a_class}"


@pytest.mark.parametrize(
    ("plural", "expected"),
    [
        ("sunflowers", "sunflower"),
        ("roses", "rose"),
        ("berries", "berry"),
        ("boxes", "box"),
        ("dresses", "dress"),
        ("ibis", "ibis"),
        ("lotus", "lotus"),
        ("grass", "grass"),
        ("series", "series"),
        ("bus", "bus"),
        ("cat", "cat"),
    ],
)
def test_singular(plural: str, expected: str) -> None:
    assert singular(plural) == expected


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("sunflowers", "a photo of a sunflower"),
        ("water_lilly", "a photo of a water lilly"),
        ("elephant", "a photo of an elephant"),
        ("unicorn", "a photo of a unicorn"),
        ("emu", "a photo of an emu"),
        ("_", ""),
    ],
)
def test_class_caption(folder: str, expected: str) -> None:
    assert class_caption(folder, template=TEMPLATE) == expected
    assert class_caption("a{class}", template="{class}!") == "a{class}!"


def test_color_phrases_and_parts() -> None:
    assert PhotoCaption("", ("red",)).text() == "red"
    assert PhotoCaption("", ("red", "green", "blue")).text() == "red, green and blue"
    both = PhotoCaption("a rose", ("red", "green"))
    assert both.text() == "a rose, red and green"
    assert both.text(with_subject=False) == "red and green"
    assert both.text(with_colors=False) == both.text(with_subject=False, with_colors=False) == "a rose"
    assert PhotoCaption("a rose").text(with_subject=False) == "a rose"
    assert PhotoCaption().text() == ""


def test_class_folder(tmp_path: Path) -> None:
    def folder(name: str, splits: list[str]) -> str:
        return class_folder(tmp_path / name, root=tmp_path, splits=splits)

    assert folder("train/cat/a.png", ["train", "val"]) == "cat"
    assert folder("train/a.png", ["train", "val"]) == ""
    assert folder("train/a.png", []) == "train"
    assert folder("a.png", []) == ""


def test_metadata_is_looked_up_from_the_nearest_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "train" / "x").mkdir(parents=True)
    lines = (
        '{"file_name": "train/a.png", "text": "root"}\n\n{"file_name": "b.png", "text": "line\u2028break"}\n'
    )
    (tmp_path / "metadata.jsonl").write_text("\ufeff" + lines, encoding="utf-8")
    (tmp_path / "train" / "metadata.jsonl").write_text(
        '{"file_name": "x/c.png", "text": "near"}', encoding="utf-8"
    )
    names = ["train/a.png", "b.png", "train/x/c.png", "train/d.png"]
    captions = metadata_captions([tmp_path / name for name in names], root=tmp_path)
    assert captions == ["root", "line\u2028break", "near", ""]
    assert "1 of 4 images have no line in metadata.jsonl" in caplog.text


def test_metadata_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="caption=metadata, but no metadata.jsonl"):
        metadata_captions([tmp_path / "a.png"], root=tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a"}\n{"file_name": 3}\n')
    with pytest.raises(ValueError, match="line 2 of .* is not a JSON object with the keys"):
        metadata_captions([tmp_path / "a.png"], root=tmp_path)
