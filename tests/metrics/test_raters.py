from itertools import permutations

import numpy as np
import pytest
import torch
from monai.metrics import compute_iou

from metrics.raters import GeneralizedEnergyDistance, HungarianIou, RaterMetric, pairwise_iou
from tests.metrics.masks import channels, random_masks

SAMPLES, RATERS = random_masks(4, 2, seed=0), random_masks(2, 2, seed=1)


def measured(metric, samples, raters):
    """The value for one image: samples (S, H, W), raters (R, H, W)."""
    metric.update([sample[None] for sample in samples], [raters])
    return metric.compute().mean


def test_pairwise_iou_equals_monai():
    first, second = random_masks(3, 3, seed=0), random_masks(2, 3, seed=1)
    found = pairwise_iou(first, second, num_classes=3)
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            expected = compute_iou(channels(a[None], 3), channels(b[None], 3), include_background=False)
            assert found[i, j].item() == pytest.approx(expected.mean().item())


def test_void_of_either_mask_does_not_count():
    first, second = random_masks(2, 3, seed=0), random_masks(2, 3, seed=1)
    first[0, :10], second[1, :, 20:] = 255, 255
    found = pairwise_iou(first, second, num_classes=3, ignore_index=255)
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            known = (a != 255) & (b != 255)
            scores = [
                ((a == k) & (b == k) & known).sum() / (((a == k) | (b == k)) & known).sum() for k in (1, 2)
            ]
            assert found[i, j].item() == pytest.approx(np.mean(scores))


def test_ged_is_the_energy_distance_over_all_pairs():
    def distance(a, b):
        return np.mean([[1 - pairwise_iou(x[None], y[None]).item() for y in b] for x in a])

    expected = 2 * distance(SAMPLES, RATERS) - distance(SAMPLES, SAMPLES) - distance(RATERS, RATERS)
    assert measured(GeneralizedEnergyDistance(), SAMPLES, RATERS) == pytest.approx(expected, abs=1e-6)
    assert measured(GeneralizedEnergyDistance(), RATERS, RATERS) == pytest.approx(0, abs=1e-6)
    assert measured(GeneralizedEnergyDistance(), RATERS.repeat(3, 1, 1), RATERS) == pytest.approx(0, abs=1e-6)


def test_hungarian_iou_is_the_best_matching_by_brute_force():
    scores = pairwise_iou(SAMPLES, RATERS.repeat(2, 1, 1)).numpy()
    best = max(np.mean([scores[i, j] for i, j in enumerate(order)]) for order in permutations(range(4)))
    assert measured(HungarianIou(), SAMPLES, RATERS) == pytest.approx(best)
    assert measured(HungarianIou(), RATERS.flip(0), RATERS) == pytest.approx(1)
    assert 0 < measured(HungarianIou(), SAMPLES[:3], RATERS) < 1  # repeated to six each


@pytest.mark.parametrize(
    ("samples", "raters", "ged", "matched"),
    [
        ((0, 0), (0, 0, 0), 0.0, 1.0),
        ((1, 1), (0, 0), 2.0, 0.0),
        ((0, 1), (0, 1), 0.0, 1.0),
        ((0,), (0, 1), 0.5, 0.5),
    ],
)
def test_empty_masks_equal_each_other_and_nothing_else(samples, raters, ged, matched):
    ids = [torch.tensor(part).view(-1, 1, 1).expand(-1, 8, 8) for part in (samples, raters)]
    assert measured(GeneralizedEnergyDistance(), *ids) == pytest.approx(ged)
    assert measured(HungarianIou(), *ids) == pytest.approx(matched)


def test_images_may_have_different_numbers_of_raters():
    metric = HungarianIou()
    samples = [random_masks(2, 2, seed=seed) for seed in range(4)]
    metric.update(samples, [random_masks(3, 2, seed=8), random_masks(1, 2, seed=9)])
    assert metric.compute().count == 2
    with pytest.raises(NotImplementedError, match="must define agreement"):
        RaterMetric().update(samples, [RATERS, RATERS])
