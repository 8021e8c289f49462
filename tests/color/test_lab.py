import numpy as np
import pytest
import torch
from skimage import color as skimage_color

from color.lab import grey_image, lab_to_rgb, lightness, rgb_to_lab


def rgb_grid(steps: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    axis = torch.linspace(0, 1, steps, dtype=dtype)
    return torch.cartesian_prod(axis, axis, axis).T.reshape(1, 3, steps, steps * steps)


def test_rgb_to_lab_equals_skimage_on_a_float64_grid():
    image = rgb_grid(18)
    expected = skimage_color.rgb2lab(image[0].permute(1, 2, 0).numpy())
    np.testing.assert_allclose(rgb_to_lab(image)[0].permute(1, 2, 0).numpy(), expected, atol=1e-10)


def test_lab_to_rgb_equals_skimage_on_a_float64_grid():
    lab = rgb_to_lab(rgb_grid(18))
    expected = skimage_color.lab2rgb(lab[0].permute(1, 2, 0).numpy())
    np.testing.assert_allclose(lab_to_rgb(lab)[0].permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_float32_round_trip_is_far_below_one_8_bit_step():
    image = rgb_grid(33, torch.float32)
    assert (lab_to_rgb(rgb_to_lab(image)) - image).abs().max() < 0.05 / 255


def test_lab_to_rgb_does_not_clip():
    lab = torch.tensor([50.0, 120.0, 0.0]).view(1, 3, 1, 1)
    assert lab_to_rgb(lab).max() > 1.0
    assert lab_to_rgb(lab).min() < 0.0


def test_lightness_is_the_l_channel_over_100():
    image = rgb_grid(18)
    torch.testing.assert_close(lightness(image), rgb_to_lab(image)[:, :1] / 100, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 2e-6), (torch.float32, 3e-6)])
def test_grey_image_has_the_lightness_it_was_made_from(dtype, atol):
    values = torch.linspace(0, 1, 1001, dtype=dtype).view(1, 1, 1, -1)
    grey = grey_image(values)
    torch.testing.assert_close(lightness(grey), values, rtol=0, atol=atol)
    assert torch.equal(grey[:, 0], grey[:, 1])
    assert torch.equal(grey[:, 1], grey[:, 2])


def test_half_precision_and_autocast_are_computed_in_float32():
    image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lab, grey = rgb_to_lab(image), lightness(image)
        back = lab_to_rgb(lab)
    assert torch.equal(lab, rgb_to_lab(image))
    assert torch.equal(grey, lightness(image))
    assert torch.equal(back, lab_to_rgb(lab))
    assert rgb_to_lab(image.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("image", [torch.rand(3, 4, 4), torch.rand(1, 1, 4, 4)])
def test_wrong_shape_is_named(image):
    with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\)"):
        rgb_to_lab(image)


def test_8_bit_input_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="divide 8-bit values by 255"):
        lightness(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
