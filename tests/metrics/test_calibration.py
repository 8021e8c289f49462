import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_auroc, multiclass_calibration_error

from metrics.calibration import BrierScore, ExpectedCalibrationError, UncertaintyAuroc
from tests.metrics.masks import random_masks


def probabilities(num_classes: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, num_classes, 40, 56, generator=generator).mul(2).softmax(1)


def measured(metric, *arguments):
    metric.update(*arguments)
    return metric.compute()


@pytest.mark.parametrize("num_bins", [10, 15])
def test_ece_equals_torchmetrics_with_void_left_out(num_bins):
    target = random_masks()
    target[:, :7] = 255
    metric = ExpectedCalibrationError(num_classes=3, ignore_index=255, num_bins=num_bins)
    for part in (slice(0, 3), slice(3, 4)):
        metric.update(probabilities()[part], target[part])
    expected = multiclass_calibration_error(
        probabilities(), target, 3, n_bins=num_bins, norm="l1", ignore_index=255
    )
    assert metric.compute().mean == pytest.approx(expected.item(), abs=1e-5)
    assert metric.compute()[1:] == (None, 4, None)


def test_sure_and_right_is_calibrated_and_sure_and_wrong_is_not():
    target = random_masks(num_classes=2)
    assert measured(ExpectedCalibrationError(), target.float(), target).mean == 0
    assert measured(ExpectedCalibrationError(), 1.0 - target, target).mean == 1
    assert measured(BrierScore(), target.float(), target).mean == 0
    assert measured(BrierScore(), 1.0 - target, target).mean == 1


def test_brier_is_the_squared_error_and_halved_for_two_classes():
    target = random_masks()
    expected = (probabilities().double().numpy() - np.eye(3)[target].transpose(0, 3, 1, 2)) ** 2
    metric = BrierScore(num_classes=3)
    metric.update(probabilities(), target)
    np.testing.assert_allclose(metric.all_values(), expected.sum(1).mean((1, 2)), rtol=1e-5)
    both, target = probabilities(2), random_masks(num_classes=2)
    alone = measured(BrierScore(), both[:, 1], target)
    assert alone.mean == pytest.approx((both[:, 1] - target).square().mean().item(), rel=1e-5)
    assert measured(BrierScore(), both, target).mean == pytest.approx(alone.mean, rel=1e-6)


def test_auroc_of_each_image_equals_torchmetrics():
    pred, target = random_masks(seed=0), random_masks(seed=1)
    target[:, :7] = 255
    uncertainty = (torch.rand(pred.shape) + 0.5 * (pred != target)).mul(20).round()  # with many ties
    metric = UncertaintyAuroc(num_classes=3, ignore_index=255)
    metric.update(uncertainty, pred, target)
    known = target != 255
    # torchmetrics takes scores outside [0, 1] for logits, whose sigmoid would merge the largest.
    expected = [
        binary_auroc(u[k] / 40, (p != t)[k].long()).item()
        for u, p, t, k in zip(uncertainty, pred, target, known, strict=True)
    ]
    np.testing.assert_allclose(metric.all_values(), expected, rtol=1e-5)


def test_empty_cases():
    target, void = random_masks(1, 2), torch.full((1, 40, 56), 255)
    for metric, arguments in (
        (UncertaintyAuroc(), (torch.rand(1, 40, 56), target, target)),  # no error
        (UncertaintyAuroc(), (torch.rand(1, 40, 56), 1 - target, target)),  # nothing right
        (UncertaintyAuroc(ignore_index=255), (torch.rand(1, 40, 56), target, void)),
        (BrierScore(ignore_index=255), (torch.rand(1, 40, 56), void)),
        (ExpectedCalibrationError(ignore_index=255), (torch.rand(1, 40, 56), void)),
    ):
        found = measured(metric, *arguments)
        assert np.isnan(found.mean)
        assert found.count == 0
    flat = measured(UncertaintyAuroc(), torch.zeros(1, 40, 56), random_masks(1, 2, seed=1), target)
    assert flat.mean == 0.5


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: BrierScore(num_classes=3).update(torch.rand(1, 8, 8), torch.ones(1, 8, 8).long()),
            "expected .B, 3, H, W",
        ),
        (
            lambda: BrierScore().update(torch.full((1, 8, 8), 2.0), torch.ones(1, 8, 8).long()),
            "got values from -1 to 2",
        ),
    ],
)
def test_bad_input_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
