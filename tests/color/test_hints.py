"""Sparse colour maps: what a cell says, and the random patches that training learns from."""

import numpy as np
import pytest
import torch

from color.hints import NUM_RANDOM, hint_map, no_hints, random_known


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
