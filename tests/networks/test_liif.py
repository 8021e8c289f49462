"""The query of LIIF: equal to the textbook's, the same in any chunks and windows, and exact where the textbook is not."""

import pytest
import torch
from torch.nn import functional as F

from benchmarks.textbook_liif import textbook
from networks import liif
from networks.liif import LiifQuery, axis_taps, interpolated


def make(**settings) -> LiifQuery:
    torch.manual_seed(0)
    return LiifQuery(6, widths=(32, 24, 24), **settings)


def features(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 6, 5, 7, generator=torch.Generator().manual_seed(1))


def whole(query: LiifQuery, size_px: tuple[int, int], seen: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return query(query.lift(features() if seen is None else seen), size_px)


@pytest.mark.parametrize("unfold", [False, True])
@pytest.mark.parametrize(
    "size_px",
    [(10, 14), (20, 28), (17, 23), (31, 8), (4, 90), (3, 3), (1, 1), (33, 47)],
    ids=lambda size: f"{size[0]}x{size[1]}",
)
def test_it_is_the_textbook(unfold, size_px):
    query = make(unfold=unfold)
    with torch.no_grad():
        expected = textbook(query, features(), size_px)
    torch.testing.assert_close(whole(query, size_px), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1, 3, 5])
def test_at_odd_scales_it_is_the_textbook_but_for_the_lines_on_which_that_takes_the_plain_mean(scale):
    query, size_px = make(), (5 * scale, 7 * scale)
    with torch.no_grad():
        expected = textbook(query, features(), size_px)
    ours = whole(query, size_px)
    # Through the centre of the last cell, where both of its taps are that cell, at offset 0, with area 0.
    row, column = 5 * scale - 1 - scale // 2, 7 * scale - 1 - scale // 2
    good = torch.ones(size_px, dtype=torch.bool)
    good[row], good[:, column] = False, False
    torch.testing.assert_close(ours[..., good], expected[..., good], rtol=1e-5, atol=1e-5)
    # The textbook is wrong there: a shift by a millionth of a cell changes it, and ours not.
    wrong = (ours - expected)[..., ~good].abs().max()
    assert wrong > 1e-3
    double = LiifQuery.double(make())
    cells = double.lift(features().double())
    near = [double(cells, (size_px[0], size_px[1]))[..., row, :], ours[..., row, :].double()]
    torch.testing.assert_close(near[0], near[1], rtol=1e-5, atol=1e-5)


def test_the_weights_are_bilinear_everywhere():
    base = torch.rand(2, 3, 5, 7, dtype=torch.float64)
    for size_px in [(5, 7), (15, 21), (11, 40), (2, 3)]:
        taps = (axis_taps(5, size_px[0], 0, size_px[0]), axis_taps(7, size_px[1], 0, size_px[1]))
        expected = F.interpolate(base, size_px, mode="bilinear", align_corners=False)
        torch.testing.assert_close(interpolated(base, *taps), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("chunk", [1, 40, 333, 1 << 20])
def test_any_chunks_are_bit_identical_to_the_whole(monkeypatch, chunk):
    query, size_px = make(unfold=True), (37, 41)
    expected = whole(query, size_px)
    monkeypatch.setattr(liif, "_CHUNK", chunk)
    assert torch.equal(whole(query, size_px), expected)


@pytest.mark.parametrize("window", [(0, 0, 37, 41), (3, 5, 20, 30), (36, 0, 1, 41), (10, 40, 9, 1)])
@pytest.mark.parametrize("ensemble", [True, False])
def test_a_window_is_the_slice_of_the_whole(window, ensemble):
    query = make(ensemble=ensemble)
    top, left, height, width = window
    with torch.no_grad():
        lifted = query.lift(features())
        found = query(lifted, (37, 41), window, base=features()[:, :3])
        expected = query(lifted, (37, 41), base=features()[:, :3])
    torch.testing.assert_close(
        found, expected[..., top : top + height, left : left + width], rtol=1e-6, atol=1e-6
    )


def test_each_sample_has_the_patch_that_it_asks_for():
    query = make()
    sizes, windows = [(12, 19), (40, 31)], [(3, 9, 8, 10), (32, 0, 8, 10)]
    with torch.no_grad():
        lifted = query.lift(features())
        found = query.patches(lifted, sizes, windows, base=features()[:, :3])
        for row in range(2):
            part = slice(row, row + 1)
            alone = query(lifted[part], sizes[row], windows[row], base=features()[part, :3])
            torch.testing.assert_close(found[part], alone, rtol=1e-5, atol=1e-6)


def test_without_the_ensemble_each_pixel_has_its_nearest_cell():
    seen = torch.arange(6.0).view(1, 1, 2, 3)
    query = LiifQuery(1, 1, widths=(2,), ensemble=False)
    with torch.no_grad():
        for parameter in query.parameters():
            parameter.zero_()
        query.layers[0].weight[0, 0] = query.layers[1].weight[0, 0] = 1.0
    expected = F.interpolate(seen, (5, 8), mode="nearest-exact")
    assert torch.equal(whole(query, (5, 8), seen), expected)


def test_no_pixel_is_told_to_be_smaller_than_the_largest_scale_says():
    query = make(max_scale=4.0)
    assert query._cell(5, 10) == make()._cell(5, 10) == 1.0
    assert query._cell(5, 100) == 0.5
    assert make()._cell(5, 100) == pytest.approx(0.1)


def test_gradients_are_those_of_the_textbook():
    query = make(unfold=True).double()
    seen = features().double().requires_grad_()
    weights = torch.randn(2, 3, 11, 17, dtype=torch.float64)
    torch.set_default_dtype(torch.float64)
    wanted = [seen, *query.parameters()]
    ours, theirs = (
        torch.autograd.grad((picture * weights).sum(), wanted)
        for picture in (query(query.lift(seen), (11, 17)), textbook(query, seen, (11, 17)))
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
