"""A region: inside and outside bit for bit, mixed colours between, and the cells that it touches."""

import pytest
import torch
from skimage import data

from color.lab import rgb_to_lab
from color.regions import blend_chroma, is_grey_outside, touched_cells


def photo_and_colored() -> tuple[torch.Tensor, torch.Tensor]:
    photo = torch.from_numpy(data.astronaut()[:60, :80]).permute(2, 0, 1).contiguous()
    return photo, photo.flip(0)


def test_inside_and_outside_are_taken_over_bit_for_bit():
    photo, colored = photo_and_colored()
    region = torch.zeros(60, 80, dtype=torch.uint8)
    region[:, 30:] = 255
    result = blend_chroma(photo, colored, region)
    assert torch.equal(result[..., :30], photo[..., :30])
    assert torch.equal(result[..., 30:], colored[..., 30:])


def test_grey_values_mix_ab_on_the_photos_own_lightness(monkeypatch):
    monkeypatch.setattr("color.regions._STRIP_PX", 7)
    photo, _ = photo_and_colored()
    grey = photo[1:2].expand(3, -1, -1).contiguous()
    region = torch.arange(80).mul(3).byte().expand(60, 80).contiguous()
    result = rgb_to_lab(blend_chroma(grey, photo, region)[None].double() / 255)
    own, new = (rgb_to_lab(p[None].double() / 255) for p in (grey, photo))
    expected = own[:, 1:] + region / 255 * (new[:, 1:] - own[:, 1:])
    assert (result[:, 0] - own[:, 0])[..., 1:].abs().max() < 0.6  # 8-bit rounding
    error = (result[:, 1:] - expected).norm(dim=1)
    assert error.median() < 0.5  # some mixtures lie outside the gamut of their lightness
    assert error.mean() < 1


@pytest.mark.parametrize("size_px", [(64, 96), (61, 203), (5, 7)])
def test_a_whole_region_has_all_cells_and_an_empty_one_none(size_px):
    for value, inside in ((255, 1.0), (0, 0.0)):
        region = torch.full(size_px, value, dtype=torch.uint8)
        assert torch.equal(touched_cells(region, (8, 12)), torch.full((1, 1, 8, 12), inside))


def test_every_cell_that_a_region_touches_is_inside():
    region = torch.zeros(64, 96, dtype=torch.uint8)
    region[:, 48:] = 255
    region[17, 9] = 1
    expected = torch.zeros(8, 12)
    expected[:, 6:] = 1
    expected[2, 1] = 1
    assert torch.equal(touched_cells(region, (8, 12))[0, 0], expected)


@pytest.mark.parametrize("size_px", [(61, 203), (5, 7), (8, 13)])
def test_cells_that_share_a_pixel_are_all_touched_by_it(size_px):
    """Pixel y spans [y, y + 1) h / H in cells."""
    for y, x in ((0, 0), (3, 5), (size_px[0] - 1, size_px[1] - 1)):
        region = torch.zeros(size_px, dtype=torch.uint8)
        region[y, x] = 7
        rows, columns = (
            {k for k in range(cells) if k * px < (at + 1) * cells and (k + 1) * px > at * cells}
            for at, px, cells in ((y, size_px[0], 8), (x, size_px[1], 12))
        )
        found = {tuple(cell) for cell in touched_cells(region, (8, 12))[0, 0].nonzero().tolist()}
        assert found == {(row, column) for row in rows for column in columns}


def test_a_photo_is_grey_outside_by_its_mean_chroma_there():
    image = photo_and_colored()[0][None].repeat(4, 1, 1, 1) / 255
    region = torch.zeros(120, 160, dtype=torch.uint8)
    region[:, 81:] = 1
    image[1:, :, :, :40] = image[1:, :1, :, :40]
    image[2:] += torch.tensor([0, 0.5, -0.5])[:, None, None] / 255  # what JPEG leaves of grey
    image[3, :, 5, 7] = torch.tensor([1.0, 0, 0])
    assert is_grey_outside(image, region).tolist() == [False, True, True, True]
    image[3, :, :20, :20] = torch.tensor([1.0, 0, 0])[:, None, None]
    assert is_grey_outside(image, region).tolist() == [False, True, True, False]
    assert is_grey_outside(image, torch.ones(120, 160, dtype=torch.uint8)).all()
