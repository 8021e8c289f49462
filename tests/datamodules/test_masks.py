"""Folders of images with masks: what they give, and every way in which they may be wrong."""

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

from datamodules.builtin_blobs import BuiltinBlobsDataModule
from datamodules.check import main as check
from datamodules.decode import UnusableMask
from datamodules.mask_files import MaskClasses
from datamodules.masks import MasksDataModule
from tests.datamodules.broken_files import assert_one_sentence
from tests.datamodules.mask_folders import agrees, built, masks_of, write_masks, write_pair
from tests.datamodules.test_photos import Recorder, SaveAt, trainer_of

CONF = Path(__file__).parents[2] / "conf" / "datamodule"
SHARED = Path(__file__).parents[2].parent / "shared" / "data"
Change = Callable[[Path], object]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_masks(tmp_path / "set")


def test_batches_and_splits(root: Path) -> None:
    data = built(root)
    batch = next(iter(data.val_dataloader()))
    assert batch["image"].shape == (3, 3, 24, 24)
    assert batch["image"].dtype == torch.float32
    assert (batch["mask"].shape, batch["mask"].dtype) == ((3, 24, 24), torch.int64)
    assert [tuple(m.shape) for m in batch["masks"]] == [(1, 24, 24)] * 3
    assert batch["name"] == ["val/images/im8.png", "val/images/im9.png", "val/images/im10.png"]
    assert all(agrees(i, m) == 1.0 for i, m in zip(batch["image"], batch["mask"], strict=True))
    item = data.train_dataset[(3, 2)]
    assert "masks" not in item
    assert agrees(item["image"], item["mask"]) > 0.7
    data.setup("test")  # val stands in
    assert data.test_dataset.names == data.val_dataset.names


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("image_cache", ["none", "memory"])
def test_a_resumed_run_continues_the_same_samples(
    tmp_path: Path, root: Path, num_workers: int, image_cache: str
) -> None:
    options = {"brightness": 0.2, "contrast": 0.3, "image_cache": image_cache}
    whole, first, rest = MaskRecorder(), MaskRecorder(), MaskRecorder()
    trainer_of(tmp_path).fit(whole, masks_of(root, brightness=0.2, contrast=0.3))
    save = SaveAt("on_train_batch_end", tmp_path / "a.ckpt", after=5)
    trainer_of(tmp_path, save).fit(first, masks_of(root, num_workers=num_workers, **options))
    assert first.seen == whole.seen
    again = masks_of(root, num_workers=num_workers, **options)
    trainer_of(tmp_path).fit(rest, again, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert rest.seen == whole.seen[5:]


class MaskRecorder(Recorder):
    """Notes the masks too."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.seen[-1] += [("mask", float(m.sum())) for m in batch["mask"]]
        return loss


def test_some_training_images_keep_their_labels(root: Path) -> None:
    names = {seed: built(root, num_train=3, train_seed=seed).train_dataset.names for seed in range(4)}
    assert all(len(set(found)) == 3 for found in names.values())
    assert len({tuple(found) for found in names.values()}) > 1
    assert built(root, num_train=3, train_seed=0, seed=9).train_dataset.names == names[0]
    assert len(built(root, num_train=3).val_dataset) == 3
    with pytest.raises(ValueError, match="datamodule.num_train is 9, but there are 8 training images"):
        built(root, num_train=9)


def test_a_rater_is_drawn_in_training_and_all_are_given_in_evaluation(tmp_path: Path) -> None:
    for number in range(4):
        write_pair(tmp_path / "train", number, raters=2 if number else 1)
        write_pair(tmp_path / "val", number, raters=3)
    data = built(tmp_path, crop="center", flip_prob=0.0, eval_crop="resize")
    item = data.val_dataset[0]
    assert item["masks"][0].shape == (3, 24, 24)
    assert torch.equal(item["mask"], item["masks"][0][0])
    pair = data.train_dataset[1]["masks"][0]
    chosen = [torch.equal(data.train_dataset[(epoch, 1)]["mask"], pair[0]) for epoch in range(40)]
    assert 10 < sum(chosen) < 30
    assert data.train_dataset[0]["masks"][0].shape[0] == 1


def test_whole_images_of_several_sizes_are_lists(tmp_path: Path) -> None:
    for number, size in enumerate([(24, 32), (16, 40), (8, 8)]):
        write_pair(tmp_path / "val", number, size=size)
    data = masks_of(tmp_path, size_px=None, crop="center")
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    assert [tuple(i.shape[1:]) for i in batch["image"]] == [(24, 32), (16, 40), (8, 8)]
    assert [tuple(m.shape) for m in batch["mask"]] == [(24, 32), (16, 40), (8, 8)]
    assert not data.val_dataset.deterministic


def test_a_run_of_random_squares_is_evaluated_on_whole_images(root: Path) -> None:
    data = built(root, size_px=None, crop="random", symmetries=True, batch_size=1)
    data.setup("fit")
    image, mask = (next(iter(data.val_dataloader()))[key] for key in ("image", "mask"))
    whole = data.val_dataset.pairs[0]
    with Image.open(whole.image) as picture:
        width, height = picture.size
    assert image.shape[-2:] == mask.shape[-2:] == (height, width)


def test_splits_by_hash_keep_images_and_masks_together(tmp_path: Path) -> None:
    for number in range(40):
        write_pair(tmp_path / "flat", number)
    data = built(tmp_path / "flat", crop="center", flip_prob=0.0)
    data.setup("test")
    sets = (data.train_dataset, data.val_dataset, data.test_dataset)
    names = [set(dataset.names) for dataset in sets]
    assert sum(map(len, names)) == len(set.union(*names)) == 40
    assert min(map(len, names)) >= 1
    assert all(agrees(item["image"], item["mask"]) == 1.0 for item in (d[0] for d in sets))
    write_pair(tmp_path / "flat", 99)
    assert names[0] <= set(built(tmp_path / "flat").train_dataset.names)


def test_classes_json_names_classes_and_void(root: Path) -> None:
    names = [{"id": n, "name": name} for n, name in enumerate(("sky", "road", "car"))]
    (root / "classes.json").write_text(json.dumps({"classes": names, "void": {"id": 255}}))
    rewrite(root / "train/masks/im1.png", lambda ids: np.where(ids == 2, 255, ids))
    data = built(root, num_classes=None)
    assert data.train_dataset.classes.names == ("sky", "road", "car")
    assert set(data.train_dataset[1]["mask"].unique().tolist()) == {0, 1, 255}
    with pytest.raises(ValueError, match="differ: 4 by datamodule.num_classes, 3 by classes.json"):
        built(root, num_classes=4)
    (root / "classes.json").write_text('{"classes": [{"id": 1, "name": "a"}]}')
    with pytest.raises(ValueError, match=r"classes.json' cannot be used \(KeyError: 0\); expected"):
        built(root)


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    Image.fromarray(change(np.array(Image.open(path))).astype(np.uint8)).save(path)


def test_16_bit_palette_and_1_bit_masks_hold_ids(root: Path, tmp_path: Path) -> None:
    ids = [np.array(Image.open(root / f"train/masks/im{n}.png")) for n in range(3)]
    Image.fromarray(ids[0].astype(np.uint16)).save(root / "train/masks/im0.png")
    palette = Image.fromarray(ids[1])
    palette.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    palette.save(root / "train/masks/im1.png")
    Image.fromarray(ids[2] > 0).save(root / "train/masks/im2.png")
    data = built(root, size_px=None, crop="center")
    assert Image.open(root / "train/masks/im0.png").mode.startswith("I;16")
    assert [Image.open(root / f"train/masks/im{n}.png").mode for n in (1, 2)] == ["P", "1"]
    for index, expected in enumerate([ids[0], ids[1], ids[2] > 0]):
        assert np.array_equal(data.train_dataset[index]["mask"], expected)
    large = Image.fromarray((ids[0].astype(np.uint16) == 1) * np.uint16(700))
    large.save(root / "train/masks/im0.png")
    data = built(root, size_px=None, crop="center", num_classes=701)
    assert data.train_dataset[0]["mask"].unique().tolist() == [0, 700]


def test_mask_values_map_files_to_ids(root: Path) -> None:
    plain = built(root, crop="center", image_cache="memory")
    for path in [*root.glob("*/masks/*.png")]:
        rewrite(path, lambda ids: np.array([0, 255, 128])[ids])
    mapped = built(root, crop="center", num_classes=None, mask_values=[0, 255, 128])
    for index in range(8):
        assert torch.equal(mapped.train_dataset[index]["mask"], plain.train_dataset[index]["mask"])


def test_values_that_no_byte_holds_are_not_wrapped() -> None:
    values = torch.tensor([[0, 188]], dtype=torch.uint8)
    with pytest.raises(UnusableMask, match="holds the value 188"):
        MaskClasses(("a", "b"), values=(0, 700)).ids(values, Path("a.png"))
    assert MaskClasses(("a", "b", "c"), values=(0, 700, 188)).ids(values, Path("a.png")).tolist() == [[0, 2]]
    many = MaskClasses(tuple(map(str, range(300))), values=tuple(range(1, 300)) + (0,))
    assert many.ids(values, Path("a.png")).tolist() == [[299, 187]]


def test_a_photo_that_lies_on_its_side_fits_its_upright_mask(root: Path) -> None:
    image = Image.open(root / "train/images/im0.png")
    exif = image.getexif()
    exif[0x0112] = 6
    (root / "train/images/im0.png").unlink()
    image.transpose(Image.Transpose.ROTATE_90).save(root / "train/images/im0.jpg", exif=exif, quality=100)
    item = built(root, size_px=None, crop="center").train_dataset[0]
    assert agrees(item["image"], item["mask"]) > 0.8


BAD: list[tuple[str, Change, dict[str, Any], str]] = [
    ("no mask", lambda r: (r / "train/masks/im3.png").unlink(), {},
     r"1 of 8 images of '.*train' have no mask \(the first is '.*im3.png'\); add their masks, or take these images out"),
    ("no image", lambda r: (r / "train/images/im3.png").unlink(), {},
     r"1 of 8 masks of '.*train' belong to no image \(the first is '.*masks/im3.png'\); name a mask like its image"),
    ("no folder", lambda r: shutil.rmtree(r / "train/masks"), {},
     r"'.*train' has no folder masks/; datamodule=masks takes images/ and masks/ in datamodule.root, or in its folders"),
    ("no file", lambda r: [p.unlink() for p in (r / "train/masks").iterdir()], {}, r"masks' is empty; put images"),
    ("two of a name", lambda r: shutil.copy(r / "train/masks/im0.png", r / "train/masks/im0.tif"), {},
     r"'.*im0.png' and '.*im0.tif' have one name; take one of them out"),
    ("other size", lambda r: Image.new("L", (9, 7)).save(r / "train/masks/im2.png"), {},
     r"the mask '.*im2.png' has 9x7 pixels, but its image '.*im2.png' 32x24; make a mask of the image's size"),
    ("unknown id", lambda r: rewrite(r / "train/masks/im2.png", lambda ids: ids * 4), {"ignore_index": 255},
     r"the mask '.*im2.png' holds the value [48]; expected class ids 0 to 2, or 255 where it is void; set "
     r"datamodule.mask_values to the files' values of the classes in order, datamodule.ignore_index=[48] if it marks void"),
    ("0 and 255", lambda r: [rewrite(p, lambda ids: (ids > 0) * 255) for p in (r / "train/masks").iterdir()],
     {"num_classes": 2},
     r"holds the value 255; expected class ids 0 to 1; set datamodule.mask_values=\[0,255\] to read 255 as class 1 "
     r"\(7 other files have such faults\)"),
    ("no such value", lambda r: None, {"mask_values": [0, 1, 4]}, r"holds the value 2; expected one of \[0, 1, 4\]"),
    ("void is a class", lambda r: None, {"mask_values": [1, 2], "ignore_index": 0, "num_classes": None},
     r"the void value 0 would become the id of a class, .*; leave datamodule.mask_values out and count void as a class"),
    ("colours", lambda r: Image.new("RGB", (32, 24)).save(r / "train/masks/im1.png"), {},
     r"the mask '.*im1.png' is a picture of the mode RGB; store class ids in one channel, as a grey picture or a palette"),
    ("jpeg", lambda r: (r / "train/masks/im1.png").rename(r / "train/masks/im1.jpg"), {},
     r"the mask '.*im1.jpg' is a JPEG, which changes class ids; store masks as PNG"),
    ("classes", lambda r: None, {"num_classes": None}, r"set datamodule.num_classes \(with the background\) or write"),
    ("all broken", lambda r: [p.write_bytes(b"x") for p in (r / "train/images").iterdir()], {},
     r"none of the 8 images in the train split of '.*' can be read"),
    ("most broken", lambda r: [p.write_bytes(b"x") for p in sorted((r / "train/masks").iterdir())[:5]], {},
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
        ({"crop": "middle"}, "datamodule.crop is 'middle'; expected one of center, random, resize"),
        ({"scale": [0.5]}, r"datamodule.scale is \[0.5\]; expected the smallest and the largest share"),
        ({"scale": [0.0, 1.0]}, r"datamodule.scale is \[0.0, 1.0\]; expected the smallest and the largest"),
        ({"brightness": 2.0}, r"datamodule.brightness is 2.0; expected a number in \[0, 1\]"),
        ({"rotation": -1.0}, "datamodule.rotation is -1.0; expected 0 or more"),
        ({"num_train": 0}, "datamodule.num_train is 0; expected at least 1"),
        ({"num_classes": 1}, "datamodule.num_classes is 1; expected at least 2, with the background"),
        ({"mask_values": [0, 0]}, r"datamodule.mask_values is \[0, 0\]; expected different values"),
        ({"max_pixels": 0}, "datamodule.max_pixels is 0; expected at least 1"),
    ],
)
def test_wrong_options(root: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        masks_of(root, **options)


def test_broken_files_are_skipped_and_empty_masks_counted(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = (root / "train/images/im0.png").read_bytes()
    (root / "train/images/im0.png").write_bytes(content[: len(content) // 2])
    (root / "train/masks/im1.png").write_bytes(b"")
    for number in (2, 3):
        rewrite(root / f"train/masks/im{number}.png", lambda ids: ids * 0)
    with caplog.at_level(logging.WARNING):
        data = built(root)
    assert "skipped 2 of 8 images that cannot be read (25.0 %)" in caplog.text
    assert "train/masks/im1.png': it is empty" in caplog.text
    assert "2 of 6 images of the train split are class 0 everywhere" in caplog.text
    assert len(data.train_dataset) == 6


def test_files_that_change_later_are_replaced_by_the_next(root: Path) -> None:
    dataset = built(root).train_dataset
    rewrite(root / "train/masks/im1.png", lambda ids: ids + 9)
    (root / "train/images/im2.png").unlink()
    item = dataset[(0, 1)]
    assert item["index"] == 3
    assert item["name"] == "train/images/im3.png"
    assert re.match("'.*im1.png': holds the value", item["skipped"])


def test_the_checking_tool_knows_masks(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check([f"root={root}", "num_classes=3"]) == 0
    assert capsys.readouterr().out == "11 images with masks, 0 broken\n"
    rewrite(root / "val/masks/im8.png", lambda ids: ids * 2)
    (root / "train/images/im2.png").write_bytes(b"")
    assert check([f"root={root}", "num_classes=3"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "im2.png': it is empty" in lines[0]
    assert "im8.png': holds the value 4" in lines[1]
    assert check([f"root={root}", "mask_values=[0,1,2]", "ignore_index=4"]) == 1
    assert check([f"root={root}"]) == 2
    assert "set datamodule.num_classes" in capsys.readouterr().err


def test_blobs_are_exact_and_the_same_in_every_run() -> None:
    options = {"size_px": 32, "num_images": 16, "num_classes": 4, "num_raters": 3}
    one, other = (BuiltinBlobsDataModule(seed=seed, **options) for seed in (0, 1))
    for data in (one, other):
        data.setup("fit")
        data.setup("test")
    assert [len(d) for d in (one.train_dataset, one.val_dataset, one.test_dataset)] == [16, 2, 2]
    assert torch.equal(one.train_dataset[3]["image"], other.train_dataset[3]["image"])
    assert not torch.equal(one.train_dataset[0]["image"], one.val_dataset[0]["image"])
    classes = set()
    for index in range(16):
        item = one.train_dataset[index]
        classes |= set(item["mask"].unique().tolist())
        assert item["masks"][0].shape == (3, 32, 32)
        for number in set(item["mask"].unique().tolist()) - {0}:
            inside = item["image"][:, item["mask"] == number]
            hue = (number - 1) / 3 + torch.tensor([0.0, 1 / 3, 2 / 3])
            nominal = (0.6 + 0.4 * torch.cos(2 * torch.pi * hue))[:, None]
            assert (inside - nominal).abs().mean() < 0.1  # the image shows exactly what the mask says
        ground = item["image"][:, item["mask"] == 0]
        assert len(ground[0]) == 0 or float(ground.amax()) < 1.0
    assert classes == {0, 1, 2, 3}
    assert one.train_dataset.fingerprint() != one.val_dataset.fingerprint()
    other_data = BuiltinBlobsDataModule(data_seed=1, **options)
    other_data.setup("fit")
    assert one.train_dataset.fingerprint() == other.train_dataset.fingerprint()
    assert other_data.train_dataset.fingerprint() != one.train_dataset.fingerprint()


@pytest.mark.parametrize("kind", [MasksDataModule, BuiltinBlobsDataModule])
def test_the_config_states_every_argument_and_its_default(kind: type) -> None:
    name = "masks" if kind is MasksDataModule else "builtin_blobs"
    config = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    parameters = inspect.signature(kind.__init__).parameters
    assert set(config) == (set(parameters) - {"self"}) | {"_target_"}
    for key, value in config.items():
        if key not in ("_target_", "root", "seed"):
            default = parameters[key].default
            assert value == (list(default) if isinstance(default, tuple) else default), key


@pytest.mark.parametrize(
    ("pack", "options", "num_classes"),
    [
        ("nuclei", {"mask_values": [0, 255]}, 2),
        ("monuseg", {"num_classes": 2}, 2),
        ("vessels", {"num_classes": 2}, 2),
        ("camvid", {}, 11),
    ],
)
def test_real_packs(pack: str, options: dict[str, Any], num_classes: int) -> None:
    if not (SHARED / pack).is_dir():
        pytest.skip(f"shared/data/{pack} is not at hand")
    data = MasksDataModule(root=str(SHARED / pack), size_px=64, batch_size=4, crop="random", **options)
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    ids = set(batch["mask"].unique().tolist())
    assert ids <= {*range(num_classes), 255}
    assert len(ids) > 1
    if pack == "vessels":
        assert {len(masks) for masks in batch["masks"]} == {2}  # CHASE
