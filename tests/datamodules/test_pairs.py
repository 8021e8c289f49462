"""Folders of pairs: what they give, and every way in which they may be wrong."""

import inspect
import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from color.classes import painted
from datamodules.builtin_pairs import BuiltinPairsDataModule
from datamodules.check import main as check
from datamodules.pairs import PairsDataModule
from tests.datamodules.broken_files import assert_one_sentence
from tests.datamodules.test_photos import Recorder, SaveAt, trainer_of

CONF = Path(__file__).parents[2] / "conf" / "datamodule"
SHARED = Path(__file__).parents[2].parent / "shared" / "data"
Change = Callable[[Path], object]


def pictures(number: int, size: tuple[int, int] = (24, 32)) -> dict[str, np.ndarray]:
    """A target of blocks, its negative as the source, and its red channel as a grey map."""
    blocks = np.random.default_rng(number).integers(0, 256, (size[0] // 4, size[1] // 4, 3), dtype=np.uint8)
    target = np.kron(blocks, np.ones((4, 4, 1), dtype=np.uint8))
    return {"target": target, "source": 255 - target, "depth": target[..., 0]}


def write_pair(
    folder: Path, number: int, *names: str, size: tuple[int, int] = (24, 32), flat: bool = False
) -> None:
    for name in names or ("target", "source"):
        place = folder / (f"{name}_im{number}.png" if flat else f"{name}/im{number}.png")
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures(number, size)[name]).save(place)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, numbers in (("train", range(8)), ("val", range(8, 11))):
        for number in numbers:
            write_pair(tmp_path / "set" / split, number)
    return tmp_path / "set"


def pairs_of(root: Path, **options: Any) -> PairsDataModule:
    defaults = {"size_px": 24, "batch_size": 3, "seed": 5, "crop": "random"}
    return PairsDataModule(root=str(root), **(defaults | options))


def built(root: Path, **options: Any) -> PairsDataModule:
    data = pairs_of(root, **options)
    data.setup("fit")
    return data


def test_batches_and_splits(root: Path) -> None:
    data = built(root)
    batch = next(iter(data.val_dataloader()))
    assert sorted(batch) == ["caption", "image", "index", "name", "source"]
    assert batch["image"].shape == batch["source"].shape == (3, 3, 24, 24)
    assert batch["image"].dtype == batch["source"].dtype == torch.float32
    assert batch["name"] == ["val/target/im8.png", "val/target/im9.png", "val/target/im10.png"]
    torch.testing.assert_close(batch["source"], 1 - batch["image"])
    data.setup("test")  # val stands in
    assert data.test_dataset.names == data.val_dataset.names
    other = built(root, reverse=True).val_dataset[0]
    assert torch.equal(other["source"], batch["image"][0])
    assert torch.equal(other["image"], batch["source"][0])


@pytest.mark.parametrize("options", [{}, {"symmetries": True}, {"scale": (0.4, 0.6)}, {"crop": "center"}])
def test_both_pictures_are_moved_alike(root: Path, options: dict[str, Any]) -> None:
    data, seen = built(root, **options), set()
    for epoch in range(12):
        item = data.train_dataset[(epoch, 2)]
        assert (item["source"] + item["image"] - 1).abs().max() < 0.02  # bicubic rounding
        seen.add(float(item["image"][0, 0, :3].sum()))
    assert len(seen) > 1
    assert data.train_dataset.deterministic == (options == {"crop": "center"})


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("image_cache", ["none", "memory"])
def test_a_resumed_run_continues_the_same_samples(
    tmp_path: Path, root: Path, num_workers: int, image_cache: str
) -> None:
    whole, first, rest = PairRecorder(), PairRecorder(), PairRecorder()
    trainer_of(tmp_path).fit(whole, pairs_of(root, symmetries=True))
    options = {"num_workers": num_workers, "image_cache": image_cache, "symmetries": True}
    save = SaveAt("on_train_batch_end", tmp_path / "a.ckpt", after=5)
    trainer_of(tmp_path, save).fit(first, pairs_of(root, **options))
    assert first.seen == whole.seen
    trainer_of(tmp_path).fit(
        rest, pairs_of(root, **options), ckpt_path=tmp_path / "a.ckpt", weights_only=True
    )
    assert rest.seen == whole.seen[5:]


class PairRecorder(Recorder):
    """Notes the sources too."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        ramp = torch.arange(batch["source"][0].numel()).view_as(batch["source"][0])
        self.seen[-1] += [("source", float((part * ramp).sum())) for part in batch["source"]]
        return loss


def test_splits_by_hash_keep_pairs_together(tmp_path: Path) -> None:
    for number in range(40):
        write_pair(tmp_path / "flat", number)
    data = built(tmp_path / "flat", crop="center", flip_prob=0.0)
    data.setup("test")
    sets = (data.train_dataset, data.val_dataset, data.test_dataset)
    names = [set(dataset.names) for dataset in sets]
    assert sum(map(len, names)) == len(set.union(*names)) == 40
    assert min(map(len, names)) >= 1
    assert all((item["source"] + item["image"] - 1).abs().max() < 0.02 for item in (d[0] for d in sets))
    write_pair(tmp_path / "flat", 99)
    assert names[0] <= set(built(tmp_path / "flat").train_dataset.names)


def lines(folder: Path, *entries: dict[str, Any]) -> None:
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, entries)) + "\n")


def test_a_table_names_pairs_conditions_and_texts(tmp_path: Path) -> None:
    for number in range(4):
        write_pair(tmp_path / "val", number, "target", "source", "depth", flat=True)
    names = [
        {key: f"{key}_im{n}.png" for key in ("target", "source", "depth")} | {"text": f"number {n}"}
        for n in range(4)
    ]
    del names[1]["text"]
    lines(tmp_path / "val", *names[::-1])
    data = pairs_of(tmp_path, conds=["depth"])
    data.setup("validate")
    items = [data.val_dataset[index] for index in range(4)]
    assert [item["caption"] for item in items] == ["number 3", "number 2", "", "number 0"]
    for item in items:
        torch.testing.assert_close(item["source"], 1 - item["image"])
        assert torch.equal(item["depth"], item["image"][:1].expand(3, -1, -1))  # a grey map
    # One table for all splits; further conditions that nobody asked for are left alone.
    (tmp_path / "val" / "metadata.jsonl").unlink()
    lines(
        tmp_path,
        *({key: f"val/{value}" if key != "text" else value for key, value in n.items()} for n in names),
    )
    data = pairs_of(tmp_path)
    data.setup("validate")
    assert len(data.val_dataset) == 4
    assert "depth" not in data.val_dataset[0]


def test_the_columns_of_diffusers_examples_are_known(tmp_path: Path) -> None:
    for number in range(3):
        write_pair(tmp_path / "train", number, flat=True)
    ends = [(f"target_im{n}.png", f"source_im{n}.png") for n in range(3)]
    lines(
        tmp_path / "train",
        *({"file_name": target, "conditioning_image": source, "text": ["a", "b"]} for target, source in ends),
    )
    data = built(tmp_path)
    item = data.train_dataset[0]
    assert (item["source"] + item["image"] - 1).abs().max() < 0.02
    assert item["caption"] == "a"
    assert {data.train_dataset[(epoch, 0)]["caption"] for epoch in range(20)} == {"a", "b"}
    one, other = ("image_file_name", "conditioning_image_file_name")
    lines(tmp_path / "train", *({one: target, other: source} for target, source in ends))
    assert torch.equal(built(tmp_path).train_dataset[0]["image"], item["image"])


def test_captions_of_folders_come_from_metadata(root: Path) -> None:
    lines(root / "train", *({"file_name": f"target/im{n}.png", "text": f"number {n}"} for n in range(8)))
    data = built(root)
    assert data.train_dataset[3]["caption"] == "number 3"
    assert data.val_dataset[0]["caption"] == ""


def test_pictures_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    for number in range(3):
        parts = pictures(number)
        depth = np.repeat(parts["depth"][..., None], 3, axis=-1)
        joined = np.concatenate([parts["target"], depth, parts["source"]], axis=1)
        Image.fromarray(joined).save(tmp_path / "val" / f"{number}.png")
    data = pairs_of(tmp_path, conds=["depth"], columns=["target", "depth", "source"], image_cache="memory")
    data.setup("validate")
    item = data.val_dataset[1]
    torch.testing.assert_close(item["source"], 1 - item["image"])
    assert torch.equal(item["depth"], item["image"][:1].expand(3, -1, -1))
    assert data.val_dataset.names == ["val/0.png", "val/1.png", "val/2.png"]
    assert data.val_dataset.files(0) == [tmp_path / "val" / "0.png"]
    data = pairs_of(tmp_path, columns=["target", "source"], reverse=True)
    data.setup("validate")
    left = data.val_dataset[0][
        "source"
    ]  # three parts of 32 are two of 48 pixels: the largest square is the middle
    assert torch.equal(left, torch.from_numpy(joined_left(tmp_path / "val" / "0.png")))


def test_cached_latents_are_those_of_the_image_as_it_is_read(root: Path, tmp_path: Path) -> None:
    prints = [built(root, **words).train_dataset.fingerprint() for words in ({}, {}, {"reverse": True})]
    for number in range(2):
        pair = pictures(number).values()
        place = tmp_path / "beside" / "train" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.concatenate([p for p in pair if p.ndim == 3], axis=1)).save(place)
    for columns in (["target", "source"], ["source", "target"]):
        prints.append(built(tmp_path / "beside", columns=columns).train_dataset.fingerprint())
    for path in root.glob("*/target/*.png"):
        Image.fromarray(np.zeros((24, 32), dtype=np.uint8)).save(path)
    for maps in ([], ["target"], ["source"]):
        if maps == ["source"]:
            for path in root.glob("*/source/*.png"):
                Image.fromarray(np.zeros((24, 32), dtype=np.uint8)).save(path)
        prints.append(built(root, class_maps=maps).train_dataset.fingerprint())
    assert prints[0] == prints[1]
    assert len(set(prints)) == len(prints) - 1


def joined_left(path: Path) -> np.ndarray:
    left = np.array(Image.open(path))[:, 12:36].astype(np.float32) / 255
    return left.transpose(2, 0, 1)


def test_class_ids_become_colours_and_no_colour_is_mixed(root: Path) -> None:
    ids = {}
    for path in root.glob("*/source/*.png"):
        ids[path.stem] = np.random.default_rng(3).integers(0, 4, (24, 32), dtype=np.uint8)
        Image.fromarray(ids[path.stem]).save(path)
    data = built(root, class_maps=["source"], scale=(0.4, 0.9))
    allowed = painted(torch.arange(4)[None]).float()[:, 0].T / 255
    for epoch in range(4):
        source = data.train_dataset[(epoch, 0)]["source"].flatten(1).T
        assert set(map(tuple, source.tolist())) <= set(map(tuple, allowed.tolist()))
    data = built(root, class_maps=["source"], eval_crop="center")
    shown = data.val_dataset[0]["source"]
    assert torch.equal((shown * 255).round().byte(), painted(torch.from_numpy(ids["im8"][:, 4:28])))


def test_a_table_of_captions_may_name_one_split(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines(root, *({"file_name": f"train/target/im{n}.png", "text": f"number {n}"} for n in range(8)))
    data = built(root)
    assert data.train_dataset[3]["caption"] == "number 3"
    assert data.val_dataset[0]["caption"] == ""
    assert "3 of 3 images have no line in metadata.jsonl" in caplog.text


BAD: list[tuple[str, Change, dict[str, Any], str]] = [
    ("no source", lambda r: (r / "train/source/im3.png").unlink(), {},
     r"1 of 8 pictures of '.*target' have no partner in source/ \(the first is '.*im3.png'\); give both one name, or take"),
    ("no target", lambda r: (r / "train/target/im3.png").unlink(), {},
     r"1 of 8 pictures of '.*source' have no partner in target/ \(the first is '.*source/im3.png'\)"),
    ("no folder", lambda r: shutil.rmtree(r / "train/source"), {},
     r"'.*train' has no folder source/; datamodule=pairs takes source/ and target/, or a metadata.jsonl that names both"),
    ("no condition", lambda r: None, {"conds": ["depth"]}, r"'.*train' has no folder depth/; datamodule=pairs takes"),
    ("no file", lambda r: [p.unlink() for p in (r / "train/target").iterdir()], {}, r"target' is empty; put images"),
    ("two of a name", lambda r: shutil.copy(r / "train/source/im0.png", r / "train/source/im0.tif"), {},
     r"'.*im0.png' and '.*im0.tif' have one name; take one of them out"),
    ("other size", lambda r: Image.new("RGB", (9, 7)).save(r / "train/source/im2.png"), {},
     r"the picture '.*source/im2.png' has 9x7 pixels, but its target '.*target/im2.png' 32x24; make all pictures of a pair"),
    ("unequal parts", lambda r: [Image.new("RGB", (9, 7)).save(r / f"train/{n}.png") for n in range(2)],
     {"columns": ["source", "target"]},
     r"the picture '.*/0.png' is 9 pixels wide, which are not the 2 equal parts of datamodule.columns=\['source', 'target'\]"),
    ("jpeg ids", lambda r: [p.rename(p.with_suffix(".jpg")) for p in (r / "train/source").iterdir()],
     {"class_maps": ["source"]}, r"the mask '.*im0.jpg' is a JPEG, which changes class ids; store masks as PNG \(7 other"),
    ("coloured ids", lambda r: None, {"class_maps": ["source"]}, r"is a picture of the mode RGB; store class ids in one"),
    ("outside", lambda r: (r / "train/metadata.jsonl").write_text('{"source": "a.png", "target": "/x/a.png"}'), {},
     r"line 1 of '.*metadata.jsonl' names the target '/x/a.png', which lies outside datamodule.root="),
    ("no text", lambda r: (r / "train/metadata.jsonl").write_text('{"source": 3, "target": "a.png"}'), {},
     r"line 1 of '.*metadata.jsonl' is not a JSON object that names target, source as file names and perhaps a text: "),
    ("a line without", lambda r: lines(r / "train", {"source": "a", "target": "b"}, {"target": "c"}), {},
     r"1 of 2 lines of '.*metadata.jsonl' name no source; give each line one, or no line"),
    ("named twice", lambda r: lines(r / "train", *[{"source": "a", "target": "b"}] * 2), {},
     r"line 2 of '.*metadata.jsonl' names the target 'b', and so does line 1; give each target one line"),
    ("all broken", lambda r: [p.write_bytes(b"x") for p in (r / "train/target").iterdir()], {},
     r"none of the 8 images in the train split of '.*' can be read"),
    ("most broken", lambda r: [p.write_bytes(b"x") for p in sorted((r / "train/source").iterdir())[:5]], {},
     r"5 of 8 images cannot be read \(62 %\), more than datamodule.max_unreadable_share=0.5 allows; the first is"),
    ("no split", lambda r: shutil.rmtree(r / "train"), {}, r"there is no train split of '.*'; add a folder"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "options", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_wrong_data_is_one_sentence_before_training(
    root: Path, change: Change, options: dict[str, Any], message: str
) -> None:
    change(root)
    assert_one_sentence(lambda: built(root, **options), message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"conds": ["caption"]},
            r"datamodule.conds is \['caption'\]; expected different names other than target",
        ),
        ({"conds": ["a", "a"]}, r"datamodule.conds is \['a', 'a'\]; expected different names"),
        ({"columns": ["source"]}, r"datamodule.columns is \['source'\]; expected target, source, each once"),
        ({"class_maps": ["depth"]}, "datamodule.class_maps names depth; expected some of target, source"),
        (
            {"class_maps": ["source"], "columns": ["source", "target"]},
            "datamodule.class_maps needs class ids in files of their own, and datamodule.columns takes colours",
        ),
        ({"scale": [0.5]}, r"datamodule.scale is \[0.5\]; expected the smallest and the largest share"),
        ({"crop": "middle"}, "datamodule.crop is 'middle'; expected one of center, random, resize"),
    ],
)
def test_wrong_options(root: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pairs_of(root, **options)


def test_broken_and_missing_files_are_skipped_as_pairs(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = (root / "train/target/im0.png").read_bytes()
    (root / "train/target/im0.png").write_bytes(content[: len(content) // 2])
    (root / "train/source/im1.png").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        data = built(root)
    assert "skipped 2 of 8 images that cannot be read (25.0 %)" in caplog.text
    assert "train/source/im1.png': it is empty" in caplog.text
    assert len(data.train_dataset) == 6
    lines(
        root / "train",
        *({"source": f"source/im{n}.png", "target": f"target/im{n}.png"} for n in range(4, 12)),
    )
    caplog.clear()
    assert len(built(root).train_dataset) == 4  # a table may name files that are not there
    assert "target/im8.png': No such file or directory" in caplog.text


def test_files_that_change_later_are_replaced_by_the_next(root: Path) -> None:
    dataset = built(root).train_dataset
    Image.new("RGB", (9, 7)).save(root / "train/source/im1.png")
    (root / "train/target/im2.png").unlink()
    item = dataset[(0, 1)]
    assert item["index"] == 3
    assert item["name"] == "train/target/im3.png"
    assert re.match("'.*im1.png': has 9x7 pixels", item["skipped"])


def test_the_checking_tool_knows_pairs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check([f"root={root}"]) == 0
    assert capsys.readouterr().out == "11 pairs, 0 broken\n"
    (root / "train/source/im2.png").write_bytes(b"")
    Image.new("RGB", (9, 7)).save(root / "val/source/im8.png")
    assert check([f"root={root}"]) == 1
    found = capsys.readouterr().out.splitlines()
    assert "im2.png': it is empty" in found[0]
    assert "im8.png': has 9x7 pixels, but its target" in found[1]
    (root / "val/source/im8.png").unlink()
    assert check([f"root={root}"]) == 2
    assert "have no partner in source/" in capsys.readouterr().err


def test_drawn_pairs_are_the_same_in_every_run() -> None:
    options = {"size_px": 32, "num_images": 16}
    one, other = (BuiltinPairsDataModule(seed=seed, **options) for seed in (0, 1))
    for data in (one, other):
        data.setup("fit")
        data.setup("test")
    assert [len(d) for d in (one.train_dataset, one.val_dataset, one.test_dataset)] == [16, 2, 2]
    item = one.train_dataset[3]
    assert torch.equal(item["image"], other.train_dataset[3]["image"])
    assert torch.equal(item["source"], other.train_dataset[3]["source"])
    assert not torch.equal(one.train_dataset[0]["image"], one.val_dataset[0]["image"])
    inside = item["source"].amax(0) > 0  # class 0 is black
    assert (
        float(item["image"][:, inside].amax(0).mean()) > float(item["image"][:, ~inside].amax(0).mean()) + 0.2
    )
    back = BuiltinPairsDataModule(reverse=True, **options)
    back.setup("fit")
    assert torch.equal(back.train_dataset[3]["image"], item["source"])
    assert one.train_dataset.fingerprint() == other.train_dataset.fingerprint()
    assert back.train_dataset.fingerprint() != one.train_dataset.fingerprint()


@pytest.mark.parametrize("kind", [PairsDataModule, BuiltinPairsDataModule])
def test_the_config_states_every_argument_and_its_default(kind: type) -> None:
    name = "pairs" if kind is PairsDataModule else "builtin_pairs"
    config = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    parameters = inspect.signature(kind.__init__).parameters
    assert set(config) == (set(parameters) - {"self"}) | {"_target_"}
    for key, value in config.items():
        if key not in ("_target_", "root", "seed"):
            default = parameters[key].default
            assert value == (list(default) if isinstance(default, tuple) else default), key


@pytest.mark.parametrize(("pack", "num"), [("facades", 86), ("maps", 30)])
def test_real_packs(pack: str, num: int) -> None:
    root = SHARED / "pairs" / pack
    if not root.is_dir():
        pytest.skip(f"shared/data/pairs/{pack} is not at hand")
    data = PairsDataModule(root=str(root), size_px=64, batch_size=num)
    data.setup("test")
    (batch,) = data.test_dataloader()
    assert batch["image"].shape == batch["source"].shape == (num, 3, 64, 64)
    rough = [part.mean(1).flatten(1) for part in (batch["image"], batch["source"])]
    rough = [(part - part.mean(1, keepdim=True)) / part.std(1, keepdim=True) for part in rough]
    likeness = rough[0] @ rough[1].T / rough[0].shape[1]
    own = likeness.diagonal()
    assert own.abs().mean() > (likeness.sum(1) - own).div(num - 1).abs().mean() + 0.05
