import numpy as np
import pytest
import torch
from skimage.color import deltaE_ciede2000

from metrics.delta_e import delta_e_2000

# From the test data of Sharma, Wu and Dalal 2005.
SHARMA = [
    ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
    ((50.0, 3.1571, -77.2803), (50.0, 0.0, -82.7485), 2.8615),
    ((50.0, 2.8361, -74.0200), (50.0, 0.0, -82.7485), 3.4412),
    ((50.0, -1.3802, -84.2814), (50.0, 0.0, -82.7485), 1.0000),
    ((50.0, 0.0, 0.0), (50.0, -1.0, 2.0), 2.3669),
    ((50.0, 2.4900, -0.0010), (50.0, -2.4900, 0.0009), 7.1792),
    ((50.0, 2.5, 0.0), (50.0, 0.0, -2.5), 4.3065),
    ((50.0, 2.5, 0.0), (73.0, 25.0, -18.0), 27.1492),
    ((50.0, 2.5, 0.0), (61.0, -5.0, 29.0), 22.8977),
    ((50.0, 2.5, 0.0), (56.0, -27.0, -3.0), 31.9030),
    ((50.0, 2.5, 0.0), (58.0, 24.0, 15.0), 19.4535),
]


def pixel(lab: tuple[float, float, float]) -> torch.Tensor:
    return torch.tensor(lab, dtype=torch.float64).view(1, 3, 1, 1)


@pytest.mark.parametrize(("first", "second", "expected"), SHARMA)
def test_published_pairs(first, second, expected):
    assert delta_e_2000(pixel(first), pixel(second)).item() == pytest.approx(expected, abs=5e-5)
    assert delta_e_2000(pixel(second), pixel(first)).item() == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-10), (torch.float32, 1e-3)])
def test_equals_skimage_on_random_colours(dtype, atol):
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([100.0, 200.0, 200.0]).view(1, 3, 1, 1)
    shift = torch.tensor([0.0, -100.0, -100.0]).view(1, 3, 1, 1)
    first, second = (torch.rand(1, 3, 60, 70, generator=generator) * scale + shift for _ in range(2))
    expected = deltaE_ciede2000(first[0].double().numpy(), second[0].double().numpy(), channel_axis=0)
    found = delta_e_2000(first.to(dtype), second.to(dtype))[0, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=atol)


def test_equal_colours_differ_by_zero_and_neutral_ones_have_no_hue():
    lab = torch.rand(1, 3, 4, 4) * 50
    assert delta_e_2000(lab, lab).abs().max() == 0
    grey = torch.tensor([40.0, 0.0, 0.0]).view(1, 3, 1, 1)
    assert torch.isfinite(delta_e_2000(grey, grey + torch.tensor([10.0, 0.0, 0.0]).view(1, 3, 1, 1))).all()


def test_different_shapes_are_named():
    with pytest.raises(ValueError, match="expected one shape"):
        delta_e_2000(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 5))
