import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules.captions import (
    PhotoCaption,
    class_caption,
    class_captions,
    class_folder,
    metadata_captions,
    singular,
)
from datamodules.photos import PhotosDataModule

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
    assert (
        "1 of 4 images have no line in metadata.jsonl ('train/d.png'); their caption is empty" in caplog.text
    )


def test_metadata_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="caption=metadata, but no metadata.jsonl"):
        metadata_captions([tmp_path / "a.png"], root=tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a"}\n{"file_name": 3}\n')
    with pytest.raises(ValueError, match="line 2 of .* is not a JSON object with the keys"):
        metadata_captions([tmp_path / "a.png"], root=tmp_path)


def write_lines(folder: Path, *entries: Any) -> None:
    folder.mkdir(exist_ok=True)
    text = "\n".join(json.dumps(entry) for entry in entries)
    (folder / "metadata.jsonl").write_text(text)


@pytest.mark.parametrize(
    "text", [3, 1.5, True, {"en": "a"}, ["a", 3], [["a"]], "\ud83d", ["a", "\udc00"], float("nan")]
)
def test_a_caption_that_is_no_text_is_an_error_with_its_line(tmp_path: Path, text: Any) -> None:
    write_lines(tmp_path, {"file_name": "a.png", "text": "a"}, {"file_name": "b.png", "text": text})
    with pytest.raises(
        ValueError, match="line 2 of '.*metadata.jsonl' .* a string, a list of strings, or null"
    ):
        metadata_captions([tmp_path / "a.png"], root=tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"), [(None, ""), ([], ""), ([None], ""), (["a"], "a"), (["a", "b"], ("a", "b"))]
)
def test_null_is_no_caption_and_a_list_is_several(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: Any, expected: Any
) -> None:
    write_lines(tmp_path, {"file_name": "a.png", "text": text})
    assert metadata_captions([tmp_path / "a.png"], root=tmp_path) == [expected]
    assert not caplog.text


COMPOSED = unicodedata.normalize("NFC", "caf\u00e9/\u00fc.png")
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("./a.png", "a.png"),
        ("sub\\a.png", "sub/a.png"),
        (".\\sub\\a.png", "sub/a.png"),
        ("sub//x/../a.png", "sub/a.png"),
        (COMPOSED, DECOMPOSED),
        (DECOMPOSED, COMPOSED),
    ],
)
def test_names_are_compared_in_one_form(tmp_path: Path, line: str, file: str) -> None:
    write_lines(tmp_path, {"file_name": line, "text": "found"})
    assert metadata_captions([tmp_path / file], root=tmp_path) == ["found"]


@pytest.mark.parametrize("second", ["a.png", "./a.png"])
def test_a_second_line_for_a_photo_is_an_error(tmp_path: Path, second: str) -> None:
    write_lines(tmp_path, {"file_name": "a.png", "text": "a"}, {"file_name": second, "text": "b"})
    with pytest.raises(
        ValueError, match=f"line 2 of .* is the second one for '{second}'; .* as a list in one line"
    ):
        metadata_captions([tmp_path / "a.png"], root=tmp_path)


def test_names_without_a_counterpart_are_shown(tmp_path: Path) -> None:
    write_lines(tmp_path, *({"file_name": f"C:/x/{number}.png", "text": "a"} for number in range(5)))
    with pytest.raises(
        ValueError, match=r"names any of its 1 images \('0.png'\); the lines name 'C:/x/0.png', .* \.\.\.:"
    ):
        metadata_captions([tmp_path / "0.png"], root=tmp_path)


def test_one_of_several_captions_is_drawn_by_seed_epoch_and_index(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(4)]
    texts = ["a black and white photo of a cat", "b", "c"]
    write_lines(tmp_path / "train", *({"file_name": name, "text": texts} for name in names))
    for name in names:
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "train" / name)

    def dataset(seed: int = 0) -> Any:
        options: Any = {"size_px": 8, "caption": "metadata", "strip_grey_phrases": True, "seed": seed}
        return PhotosDataModule(root=str(tmp_path / "train"), **options).build_dataset("train")

    drawn = [[dataset()[(epoch, index)]["caption"] for index in range(2)] for epoch in range(20)]
    assert {caption for pair in drawn for caption in pair} == {"a cat", "b", "c"}
    assert [one for one, _ in drawn] != [other for _, other in drawn]
    other_seed = dataset(1)
    assert [other_seed[(epoch, 0)]["caption"] for epoch in range(20)] != [one for one, _ in drawn]
    assert dataset()[(7, 1)]["caption"] == drawn[7][1]
    assert [dataset()[index]["caption"] for index in range(2)] == ["a cat"] * 2


def test_a_class_folder_whose_name_is_no_utf8_gives_a_caption_that_can_be_encoded(tmp_path: Path) -> None:
    paths = [tmp_path / os.fsdecode(b"caf\xe9") / "a.png"]
    (caption,) = class_captions(paths, root=tmp_path, template=TEMPLATE)
    assert caption.encode() == rb"a photo of a caf\xe9"
