import inspect
from itertools import product
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from datamodules.builtin import PHOTOS, BuiltinPhotosDataModule, crop_boxes, split_region

CONF = Path(__file__).parents[2] / "conf" / "datamodule"
SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def datamodule() -> BuiltinPhotosDataModule:
    module = BuiltinPhotosDataModule(size_px=16)
    module.setup("fit")
    module.setup("test")
    return module


def test_regions_of_the_splits_are_disjoint_and_cover_the_photo() -> None:
    for height, width in product((1, 7, 100), (4, 9, 133)):
        count = torch.zeros(height, width)
        for split in SPLITS:
            part = split_region(height, width, split)
            count[part.top : part.top + part.height, part.left : part.left + part.width] += 1
        assert torch.equal(count, torch.ones(height, width))


def test_crops_cover_their_region_and_stay_inside() -> None:
    region = split_region(100, 200, "train")
    boxes = crop_boxes(region, scales=(1.0, 0.4), overlap=0.5)
    assert len(set(boxes)) == len(boxes)
    for side in (100, 40):
        count = torch.zeros(100, 200)
        for box in (box for box in boxes if box.height == side):
            assert box.width == side
            count[box.top : box.top + side, box.left : box.left + side] += 1
        assert (count[:, :120] > 0).all()
        assert (count[:, 120:] == 0).all()


def test_all_photos_are_there_in_every_split(datamodule: BuiltinPhotosDataModule) -> None:
    for split in SPLITS:
        names = getattr(datamodule, f"{split}_dataset").names
        assert len(set(names)) == len(names)
        for file in PHOTOS:
            assert any(name.startswith(Path(file).stem) for name in names)
    assert len(datamodule.train_dataset) > 1000
    assert 50 < len(datamodule.val_dataset) < 200


def test_items_are_the_same_in_every_run(datamodule: BuiltinPhotosDataModule) -> None:
    again = BuiltinPhotosDataModule(size_px=16)
    again.setup("fit")
    assert again.train_dataset.fingerprint() == datamodule.train_dataset.fingerprint()
    assert torch.equal(again.train_dataset[(1, 5)]["image"], datamodule.train_dataset[(1, 5)]["image"])
    batch = next(iter(datamodule.val_dataloader()))
    assert batch["image"].shape == (16, 3, 16, 16)
    assert batch["image"].dtype == torch.float32
    assert set(batch["caption"]) <= set(PHOTOS.values())
    assert datamodule.train_dataset.deterministic


def test_wrong_caption() -> None:
    with pytest.raises(ValueError, match="datamodule.caption is 'blip'; expected one of none, folder"):
        BuiltinPhotosDataModule(caption="blip")


def test_the_config_states_every_argument_and_its_default() -> None:
    config = OmegaConf.to_container(OmegaConf.load(CONF / "builtin_photos.yaml"))
    parameters = inspect.signature(BuiltinPhotosDataModule.__init__).parameters
    assert set(config) == (set(parameters) - {"self"}) | {"_target_"}
    for key, value in config.items():
        if key not in ("_target_", "seed"):
            assert value == parameters[key].default, key
