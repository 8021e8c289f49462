import pytest
import torch

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


def pixels(*labs: tuple[float, float, float]) -> torch.Tensor:
    """Pictures (B, 3, 1, 1)."""
    return torch.tensor(labs, dtype=torch.float64).view(-1, 3, 1, 1)


def test_published_pairs():
    first, second, expected = zip(*SHARMA, strict=True)
    for pair in ((pixels(*first), pixels(*second)), (pixels(*second), pixels(*first))):
        found = delta_e_2000(*pair)
        assert found.shape == (len(SHARMA), 1, 1, 1)
        assert found.flatten().tolist() == pytest.approx(expected, abs=5e-5)


def test_equal_colours_differ_by_zero_and_neutral_ones_have_no_hue():
    lab = torch.rand(2, 3, 4, 5) * 50
    assert torch.equal(delta_e_2000(lab, lab), torch.zeros(2, 1, 4, 5))
    assert delta_e_2000(pixels((40, 0, 0)), pixels((50, 0, 0))).isfinite().all()
