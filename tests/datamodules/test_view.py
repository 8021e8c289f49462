"""Image and mask see the same: what stands for a class in the image stands for it in the mask."""

import numpy as np
import pytest
import torch

from datamodules.keyed_dataset import collate
from datamodules.masks import MaskTransform
from datamodules.view import View

# Far apart, so that a shift by a pixel shows, and their mean is no id.
IDS, GREYS = (0, 3, 7, 255), (0, 60, 130, 250)


def scene(height: int, width: int, *, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An image of grey squares and the mask (1, H, W) that says which."""
    generator = np.random.default_rng(height * width)
    cells = generator.integers(0, len(IDS), (height // side + 1, width // side + 1))
    numbers = np.kron(cells, np.ones((side, side), dtype=int))[:height, :width]
    image = torch.from_numpy(np.array(GREYS, dtype=np.uint8)[numbers]).expand(3, -1, -1)
    return image.clone(), torch.from_numpy(np.array(IDS, dtype=np.uint8)[numbers])[None]


def greys_of(mask: torch.Tensor) -> torch.Tensor:
    table = torch.zeros(256)
    table[list(IDS)] = torch.tensor(GREYS, dtype=torch.float32)
    return table[mask.long()]


@pytest.mark.parametrize("crop", ["center", "random", "resize"])
@pytest.mark.parametrize("size_px", [16, 48, 96, None])
@pytest.mark.parametrize("flip_prob", [0.0, 1.0])
def test_a_mask_stays_on_its_image_and_holds_no_new_id(
    crop: str, size_px: int | None, flip_prob: float
) -> None:
    if size_px is None and crop == "random":
        pytest.skip("refused")
    transform = MaskTransform(size_px, crop=crop, flip_prob=flip_prob, scale=(0.4, 1.0))
    image, mask = scene(90, 70, side=20)
    generator = np.random.default_rng(0)
    for _ in range(20):
        view = transform.view((90, 70), generator.random(3), flip=bool(flip_prob))
        seen, ids = view.image(image).float().mean(0), view.mask(mask)
        assert set(ids.unique().tolist()) <= set(IDS)
        assert seen.shape == ids.shape[1:] == ((size_px, size_px) if size_px else (90, 70))
        near = (seen - greys_of(ids[0])).abs() < 30
        # Only pixels at the borders of the squares mix two greys.
        assert near.float().mean() > (0.6 if size_px == 16 else 0.85)
        if size_px != 16:
            shifted = (seen[:, 2:] - greys_of(ids[0])[:, :-2]).abs() < 30
            assert shifted.float().mean() < near.float().mean()


def test_halving_takes_the_ids_at_the_centres_and_does_not_move_them() -> None:
    """The centre of mass of a square in the middle stays there; the nearest corner pixel would move it."""
    mask = torch.zeros(1, 99, 99, dtype=torch.uint8)
    mask[:, 33:66, 33:66] = 1
    small = View.whole((99, 99), size_px=33).mask(mask)
    assert torch.equal(small[0].nonzero().float().mean(0), torch.tensor([16.0, 16.0]))
    ids = torch.arange(70_000, 70_064, dtype=torch.int32).view(1, 8, 8)
    assert set(View.whole((8, 8), size_px=5).mask(ids).flatten().tolist()) <= set(ids.flatten().tolist())


def test_squares_stay_inside_and_reach_all_places() -> None:
    lefts = set()
    for share in np.linspace(0, 1, 50, endpoint=False):
        view = View.square((5, 9), side=5, size_px=5, position=np.array([share, share]))
        assert view.top == 0
        lefts.add(view.left)
    assert lefts == {0, 1, 2, 3, 4}


def test_a_batch_of_several_sizes_is_a_list() -> None:
    items = [
        {"index": i, "name": str(i), "image": torch.zeros(3, 4, 4 + i), "masks": [torch.zeros(1 + i, 4, 4)],
         "encodings": {"image": torch.zeros(8, 2, 2)}}
        for i in range(2)
    ]  # fmt: skip
    batch = collate(items)
    assert batch["index"].tolist() == [0, 1]
    assert batch["name"] == ["0", "1"]
    assert [tuple(image.shape) for image in batch["image"]] == [(3, 4, 4), (3, 4, 5)]
    assert [len(masks) for masks in batch["masks"]] == [1, 2]
    assert batch["encodings"]["image"].shape == (2, 8, 2, 2)
    assert collate(items[:1])["image"].shape == (1, 3, 4, 4)
