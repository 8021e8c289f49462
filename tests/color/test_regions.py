"""A region: inside and outside bit for bit, mixed colours between, and its share of the cells."""

import pytest
import torch
from skimage import data

from color.lab import rgb_to_lab
from color.regions import blend_chroma, region_share


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
def test_the_share_of_cells_is_exact_where_a_region_is_whole(size_px):
    for value, share in ((255, 1.0), (0, 0.0)):
        region = torch.full(size_px, value, dtype=torch.uint8)
        assert torch.equal(region_share(region, (8, 12)), torch.full((1, 1, 8, 12), share))


def test_the_share_of_cells_follows_the_region():
    region = torch.zeros(64, 96, dtype=torch.uint8)
    region[:, 48:] = 255
    share = region_share(region, (8, 12))[0, 0]
    assert torch.equal(share[:, :5], torch.zeros(8, 5))
    assert torch.equal(share[:, 7:], torch.ones(8, 5))
    assert share.mean() == pytest.approx(0.5, abs=0.01)
