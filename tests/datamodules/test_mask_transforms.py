"""What training changes about images with masks: both alike where it moves them, the image alone where it colours."""

from pathlib import Path

import pytest
import torch

from tests.datamodules.mask_folders import agrees, built, write_masks


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_masks(tmp_path / "set")


def test_colours_change_with_the_epoch_and_masks_do_not(root: Path) -> None:
    options = {"crop": "center", "flip_prob": 0.0, "brightness": 0.2, "contrast": 0.3}
    plain, changed = built(root, crop="center", flip_prob=0.0), built(root, **options)
    pixels, means = plain.train_dataset[(0, 1)]["image"], []
    for epoch in range(6):
        item = changed.train_dataset[(epoch, 1)]
        assert torch.equal(item["mask"], plain.train_dataset[1]["mask"])
        assert 0.0 <= item["image"].min() <= item["image"].max() <= 1.0
        means.append(float(item["image"].mean()))
    assert len(set(means)) == 6
    assert all(abs(mean - float(pixels.mean())) < 0.4 for mean in means)
    assert torch.equal(changed.val_dataset[0]["image"], plain.val_dataset[0]["image"])
    assert plain.train_dataset.deterministic
    assert not changed.train_dataset.deterministic


def test_all_eight_symmetries_come_and_move_image_and_mask_alike(root: Path) -> None:
    plain = built(root, crop="center", flip_prob=0.0).train_dataset[1]
    turned = built(root, crop="center", flip_prob=0.0, symmetries=True)
    seen = set()
    for epoch in range(60):
        item = turned.train_dataset[(epoch, 1)]
        matches = [
            (number, mirrored)
            for number in range(4)
            for mirrored in (False, True)
            if torch.equal(item["image"], _turned(plain["image"], number, mirrored))
            and torch.equal(item["mask"], _turned(plain["mask"], number, mirrored))
        ]
        assert matches
        seen.add(matches[0])
    assert len(seen) == 8
    assert torch.equal(turned.val_dataset[0]["image"], built(root, crop="center").val_dataset[0]["image"])


def _turned(picture: torch.Tensor, number: int, mirrored: bool) -> torch.Tensor:
    turned = picture.rot90(number, (-2, -1))
    return turned.flip(-1) if mirrored else turned


def test_a_turned_mask_stays_with_its_image_and_has_no_new_class(root: Path) -> None:
    data = built(root, rotation=45.0, scale=(1.0, 1.0), flip_prob=0.0)
    for epoch in range(5):
        item = data.train_dataset[(epoch, 2)]
        assert set(item["mask"].unique().tolist()) <= {0, 1, 2}
        assert item["mask"].dtype == torch.int64
        assert agrees(item["image"], item["mask"]) > 0.6  # edges between classes are blurred in the image
    assert not data.train_dataset.deterministic


@pytest.mark.parametrize("option", ["brightness", "contrast", "gamma", "saturation", "hue"])
def test_each_change_of_colours_does_something_and_stays_in_range(root: Path, option: str) -> None:
    plain = built(root, crop="center", flip_prob=0.0).train_dataset[1]
    changed = built(root, crop="center", flip_prob=0.0, **{option: 0.3}).train_dataset[(0, 1)]
    assert not torch.equal(changed["image"], plain["image"])
    assert 0.0 <= changed["image"].min() <= changed["image"].max() <= 1.0
    assert torch.equal(changed["mask"], plain["mask"])
