"""Guidance at its fixed points, and the rescale against its definition."""

import torch

from diffusion.guidance import guide


def test_scale_one_and_zero_are_the_two_branches():
    pred, negative = torch.randn(2, 3, 4, 8, 8)
    assert torch.allclose(guide(pred, negative, scale=1.0), pred, atol=1e-6)
    assert torch.equal(guide(pred, negative, scale=0.0), negative)


def test_full_rescale_restores_the_standard_deviation_of_each_sample():
    pred, negative = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64)
    guided = guide(pred, negative, scale=7.5, rescale=1.0)
    torch.testing.assert_close(guided.std((1, 2, 3)), pred.std((1, 2, 3)))


def test_partial_rescale_mixes_linearly():
    pred, negative = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64)
    ends = [guide(pred, negative, scale=5.0, rescale=phi) for phi in (0.0, 1.0)]
    torch.testing.assert_close(guide(pred, negative, scale=5.0, rescale=0.7), 0.3 * ends[0] + 0.7 * ends[1])
