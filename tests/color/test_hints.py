"""Sparse colour maps: what a cell says, and the random patches that training learns from."""

import numpy as np
import pytest
import torch

from color.hints import NUM_RANDOM, KnownColors, hint_map, known_map, no_hints, random_known
from color.lab import rgb_to_lab


def test_a_cell_holds_the_mean_of_its_known_pixels():
    ab = torch.zeros(1, 2, 8, 8)
    known = torch.zeros(1, 1, 8, 8)
    for row, column, a, b in ((0, 0, 30.0, -10.0), (3, 2, 10.0, 50.0), (5, 6, -40.0, 20.0)):
        ab[0, :, row, column] = torch.tensor([a, b])
        known[0, 0, row, column] = 1
    ab[0, :, 7, 0] = 99  # not known
    found = hint_map(ab, known, size=(2, 2))
    expected = torch.zeros(1, 3, 2, 2)
    expected[0, :, 0, 0] = torch.tensor([20 / 50, 20 / 50, 1])
    expected[0, :, 1, 1] = torch.tensor([-40 / 50, 20 / 50, 1])
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.equal(hint_map(ab, torch.zeros_like(known), size=(2, 2)), no_hints(1, (2, 2)))


def test_one_pixel_of_a_large_photo_counts():
    ab = torch.full((1, 2, 999, 1300), 25.0)
    known = torch.zeros(1, 1, 999, 1300)
    known[0, 0, 500, 20] = 1
    found = hint_map(ab, known, size=(16, 20))
    assert found[0, 2].sum() == 1
    assert torch.allclose(found[0, :, 8, 0], torch.tensor([0.5, 0.5, 1.0]), rtol=1e-4)


@pytest.mark.parametrize("size_px", [(64, 64), (32, 96)])
def test_random_patches_are_few_to_many_and_nowhere_missing(size_px):
    uniform = np.random.default_rng(0).random((2000, NUM_RANDOM))
    known = random_known(uniform, size_px)
    assert known.shape == (2000, 1, *size_px)
    share = known.mean((1, 2, 3))
    assert set(known.unique().tolist()) == {0.0, 1.0}
    assert share.min() > 0
    assert 0.02 < share.mean() < 0.15
    assert (share > 0.2).float().mean() < 0.1
    # No place is favoured: the middle half is known about as often as the rest.
    by_place = known.mean((0, 1))
    middle = by_place[size_px[0] // 4 : -size_px[0] // 4, size_px[1] // 4 : -size_px[1] // 4]
    assert 0.9 < middle.mean() / by_place.mean() < 1.4
    assert torch.equal(random_known(uniform[5:6], size_px), known[5:6])


def test_one_patch_where_the_numbers_say_so():
    uniform = np.zeros((1, NUM_RANDOM))
    uniform[0, 1:4] = (0.5, 0.25, 0.0)  # row, column, size
    known = random_known(uniform, (8, 8))
    assert known.nonzero().tolist() == [[0, 0, 4, 2]]


def random_colors(
    size_px: tuple[int, int], *, share: float
) -> tuple[KnownColors, torch.Tensor, torch.Tensor]:
    """Some pixels of a random picture, the picture (1, 3, H, W), and which pixels they are (1, 1, H, W)."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.randint(0, 256, (3, *size_px), generator=generator, dtype=torch.uint8)
    chosen = torch.rand(size_px, generator=generator) < share
    index = chosen.flatten().nonzero().squeeze(1)
    color = picture.flatten(1)[:, index].T
    return KnownColors(index, color, size_px), picture[None] / 255, chosen[None, None].float()


@pytest.mark.parametrize("size_px", [(48, 96), (96, 24), (12, 12)])
@pytest.mark.parametrize("share", [0.02, 1.0])
def test_known_pixels_give_the_map_of_the_whole_photo(size_px, share):
    known, picture, chosen = random_colors(size_px, share=share)
    size = (size_px[0] // 4, size_px[1] // 4)
    expected = hint_map(rgb_to_lab(picture)[:, 1:], chosen, size=size)
    assert torch.allclose(known_map(known, size=size), expected, atol=1e-5)


def test_known_pixels_count_in_the_cell_of_their_centre_and_in_any_order(monkeypatch):
    known, picture, chosen = random_colors((37, 53), share=0.3)
    row, column = torch.arange(37)[:, None], torch.arange(53)
    cell = ((row + 0.5) * 5 / 37).floor() * 8 + ((column + 0.5) * 8 / 53).floor()
    ab = rgb_to_lab(picture)[0, 1:]
    found = known_map(known, size=(5, 8))
    for number in range(40):
        inside = (cell == number) & (chosen[0, 0] > 0)
        expected = torch.cat([ab[:, inside].mean(1) / 50, torch.ones(1)])
        assert torch.allclose(found[0, :, number // 8, number % 8], expected, atol=1e-5)
    monkeypatch.setattr("color.hints._CHUNK", 7)
    order = torch.randperm(len(known.index), generator=torch.Generator().manual_seed(0))
    shuffled = KnownColors(known.index[order], known.color[order], known.size_px)
    assert torch.allclose(known_map(shuffled, size=(5, 8)), found, atol=1e-6)


def test_a_photo_smaller_than_the_map_fills_every_cell_of_a_pixel():
    known = KnownColors(torch.tensor([1]), torch.tensor([[200, 30, 30]], dtype=torch.uint8), (2, 2))
    assert known_map(known, size=(4, 6))[0, 2].tolist() == [[0, 0, 0, 1, 1, 1]] * 2 + [[0] * 6] * 2


def test_lightness_of_a_hint_does_not_count():
    grey = torch.tensor([[0, 0, 0], [255, 255, 255]], dtype=torch.uint8)
    for color in grey:  # black and white alike say: no colour here
        found = known_map(KnownColors(torch.tensor([0]), color[None], (1, 1)), size=(1, 1))
        assert torch.allclose(found.flatten(), torch.tensor([0.0, 0.0, 1.0]), atol=1e-3)
