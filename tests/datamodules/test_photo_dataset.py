import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from datamodules.captions import PhotoCaption
from datamodules.image_files import list_images
from datamodules.photo_dataset import PhotoDataset, PhotoTransform
from datamodules.photos import PhotosDataModule

Writer = Callable[..., Path]


def dataset_of(folder: Path, transform: PhotoTransform, *, keep: bool = False, seed: int = 0) -> PhotoDataset:
    data = PhotosDataModule(
        root=str(folder), seed=seed, image_cache="memory" if keep else "none", max_unreadable_share=1.0
    )
    return data.photos(list_images(folder), "train", transform=transform)


@pytest.mark.parametrize("crop", ["center", "random"])
def test_the_memory_cache_changes_no_bit(write_photos: Writer, crop: str) -> None:
    folder = write_photos("a", 4)
    transform = PhotoTransform(16, crop=crop)
    plain, kept = dataset_of(folder, transform), dataset_of(folder, transform, keep=True)
    for epoch in range(3):
        for index in range(4):
            assert torch.equal(plain[(epoch, index)]["image"], kept[(epoch, index)]["image"])
            assert torch.equal(plain[index]["image"], kept.load(index))


def test_items(write_photos: Writer) -> None:
    dataset = dataset_of(write_photos("a", 3), PhotoTransform(16))
    item = dataset[1]
    assert item["image"].shape == (3, 16, 16)
    assert item["image"].dtype == torch.float32
    assert item["image"].min() >= 0.0
    assert item["image"].max() <= 1.0
    assert (item["name"], item["index"], item["caption"]) == ("photo_1.png", 1, "")
    assert "encodings" not in item
    with pytest.raises(IndexError):
        dataset[3]


def test_augmentation_depends_on_seed_epoch_and_index_alone(write_photos: Writer) -> None:
    folder = write_photos("a", 2)
    transform = PhotoTransform(16, crop="random")
    first = dataset_of(folder, transform)[(5, 1)]["image"]
    torch.manual_seed(99)
    dataset = dataset_of(folder, transform)
    dataset[(0, 0)]
    assert torch.equal(dataset[(5, 1)]["image"], first)
    others = [dataset[(epoch, 1)]["image"] for epoch in range(8)]
    assert len({image.numpy().tobytes() for image in others}) == 8
    state = torch.get_rng_state()
    dataset[(1, 1)]
    assert torch.equal(torch.get_rng_state(), state)


def test_flips_have_their_probability_and_moments_follow_them(write_photos: Writer) -> None:
    class Moments:
        def get(self, index: int, flip: bool) -> Tensor:
            return torch.tensor([index, int(flip)])

    dataset = dataset_of(write_photos("a", 1), PhotoTransform(16, flip_prob=0.3), keep=True)
    dataset.encodings = {"image": Moments()}
    num_flipped = 0
    for epoch in range(600):
        item = dataset[(epoch, 0)]
        flip = bool(item["encodings"]["image"][1])
        assert torch.equal(item["image"], dataset.load(0, flip=flip))
        num_flipped += flip
    assert not torch.equal(dataset.load(0), dataset.load(0, flip=True))
    assert num_flipped == pytest.approx(180, abs=40)
    assert dataset[0]["encodings"]["image"].tolist() == [0, 0]


def test_training_captions_mix_their_parts(write_photos: Writer) -> None:
    transform = PhotoTransform(16, caption_drop_colors_prob=0.25, caption_drop_class_prob=0.5)
    dataset = dataset_of(write_photos("a", 1), transform, keep=True)
    dataset.captions = [PhotoCaption("a cat", ("red", "blue"))]
    texts = [dataset[(epoch, 0)]["caption"] for epoch in range(800)]
    assert set(texts) == {"a cat", "red and blue", "a cat, red and blue"}
    assert texts.count("red and blue") == pytest.approx(800 * 0.75 * 0.5, abs=50)
    assert texts.count("a cat, red and blue") == pytest.approx(800 * 0.75 * 0.5, abs=50)
    assert dataset[0]["caption"] == "a cat, red and blue"


def test_fingerprint_follows_files_and_crop(write_photos: Writer) -> None:
    folder = write_photos("a", 2)
    first = dataset_of(folder, PhotoTransform(16)).fingerprint()
    assert dataset_of(folder, PhotoTransform(16), keep=True, seed=4).fingerprint() == first
    assert dataset_of(folder, PhotoTransform(8)).fingerprint() != first
    os.utime(folder / "photo_1.png", ns=(1, 1))
    assert dataset_of(folder, PhotoTransform(16)).fingerprint() != first


def test_deterministic_and_subset(write_photos: Writer) -> None:
    folder = write_photos("a", 4)
    assert not dataset_of(folder, PhotoTransform(16, crop="random")).deterministic
    for keep in (False, True):
        dataset = dataset_of(folder, PhotoTransform(16), keep=keep)
        assert dataset.deterministic
        part = dataset.subset([3, 1])
        assert part.names == ["photo_3.png", "photo_1.png"]
        assert torch.equal(part.load(0), dataset.load(3))


@pytest.mark.parametrize("keep", [False, True])
def test_broken_files_are_skipped_with_a_count(
    write_photos: Writer, caplog: pytest.LogCaptureFixture, keep: bool
) -> None:
    folder = write_photos("a", 3)
    (folder / "photo_1.png").write_bytes(b"broken")
    dataset = dataset_of(folder, PhotoTransform(16), keep=keep)
    assert dataset.names == ["photo_0.png", "photo_2.png"]
    assert "skipped 1 of 3 images that cannot be read" in caplog.text
    assert "photo_1.png" in caplog.text


def test_a_file_that_breaks_later_is_replaced_with_all_that_belongs_to_it(write_photos: Writer) -> None:
    class Moments:
        def get(self, index: int, flip: bool) -> Tensor:
            return torch.tensor([index, int(flip)])

    folder = write_photos("a", 3)
    dataset = dataset_of(folder, PhotoTransform(16))
    dataset.captions = [PhotoCaption(f"photo {number}") for number in range(3)]
    dataset.encodings = {"image": Moments()}
    (folder / "photo_1.png").unlink()
    item = dataset[1]
    assert torch.equal(item["image"], dataset[2]["image"])
    assert (item["name"], item["caption"], item["index"]) == ("photo_2.png", "photo 2", 2)
    assert item["encodings"]["image"].tolist() == [2, 0]
    assert item["skipped"] == f"{str(folder / 'photo_1.png')!r}: No such file or directory"
    assert dataset[2]["skipped"] == ""
    for name in ("photo_0.png", "photo_2.png"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match="No such file .*; the 2 files after it cannot be read either"):
        dataset[0]
