import numpy as np
import pytest
import torch
from monai.metrics import compute_dice, compute_iou
from torchmetrics.functional.classification import multiclass_jaccard_index

from metrics.segmentation import Overlap, PooledOverlap
from tests.metrics.masks import channels, random_masks

EMPTY, SQUARE = torch.zeros(1, 8, 8, dtype=torch.int64), torch.zeros(1, 8, 8, dtype=torch.int64)
SQUARE[:, 2:5, 2:5] = 1
VOID = torch.full_like(EMPTY, 255)


def measured(metric, pred, target):
    metric.update(pred, target)
    return metric.compute()


@pytest.mark.parametrize(("kind", "monai"), [("dice", compute_dice), ("iou", compute_iou)])
@pytest.mark.parametrize("include_background", [False, True])
def test_overlap_of_each_image_equals_monai(kind, monai, include_background):
    pred, target = random_masks(seed=0), random_masks(seed=1)
    pred[0][pred[0] == 2] = 1
    target[0][target[0] == 2] = 0  # class 2 is in neither mask of the first image
    metric = Overlap(kind, num_classes=3, include_background=include_background)
    metric.update(pred, target)
    expected = monai(
        channels(pred, 3), channels(target, 3), include_background=include_background, ignore_empty=False
    )
    expected[0, -1] = torch.nan  # MONAI counts it as 1, here it does not count
    torch.testing.assert_close(metric.all_values(), expected.nanmean(1).float())


def test_pooled_iou_equals_torchmetrics_without_void():
    pred, target = random_masks(num_classes=4, seed=0), random_masks(num_classes=4, seed=1)
    target[:, :5] = 255
    metric = PooledOverlap("iou", num_classes=4, ignore_index=255, include_background=True)
    for part in (slice(0, 1), slice(1, 4)):
        metric.update(pred[part], target[part])
    expected = multiclass_jaccard_index(pred, target, 4, ignore_index=255)
    assert metric.compute().mean == pytest.approx(expected.item(), rel=1e-6)
    assert metric.compute()[1:] == (None, 4, None)
    dice = PooledOverlap("dice", num_classes=4, ignore_index=255, include_background=True)
    dice.update(pred, target)
    iou = metric.overlap(*metric.sizes)
    torch.testing.assert_close(dice.overlap(*dice.sizes), 2 * iou / (1 + iou))


@pytest.mark.parametrize("build", [Overlap, PooledOverlap])
@pytest.mark.parametrize("kind", ["dice", "iou"])
@pytest.mark.parametrize(
    ("pred", "target", "expected"),
    [
        (EMPTY, EMPTY, 1.0),
        (SQUARE, EMPTY, 0.0),
        (EMPTY, SQUARE, 0.0),
        (SQUARE, SQUARE, 1.0),
        (SQUARE, VOID, np.nan),
        (SQUARE, torch.where(SQUARE == 1, 255, SQUARE), 1.0),  # what is void counts neither way
    ],
)
def test_empty_cases(build, kind, pred, target, expected):
    found = measured(build(kind, ignore_index=255), pred, target)
    np.testing.assert_equal(found.mean, expected)
    assert found.count == (0 if np.isnan(expected) else 1)


def test_a_set_of_one_class_is_perfect_only_with_that_class():
    full = torch.ones(2, 8, 8, dtype=torch.int64)
    assert measured(Overlap("iou"), full, full).mean == 1
    assert measured(Overlap("iou", include_background=True), full, full).mean == 1
    assert measured(Overlap("iou"), full * 0, full).mean == 0


def test_values_do_not_depend_on_the_batching():
    pred, target = random_masks(seed=0), random_masks(seed=1)
    whole, parts = Overlap(num_classes=3), Overlap(num_classes=3)
    whole.update(pred, target)
    for i in range(4):
        parts.update(pred[i : i + 1], target[i : i + 1])
    assert whole.compute() == parts.compute()


@pytest.mark.parametrize(
    ("pred", "target", "message"),
    [
        (SQUARE * 3, SQUARE, "got class 3 in pred, expected 0 to 1; set protocol.num_classes"),
        (SQUARE, VOID, "got class 255 in target"),
        (SQUARE.float(), SQUARE, "expected class ids"),
        (SQUARE, SQUARE[:, 1:], "of one shape"),
    ],
)
def test_bad_masks_are_named(pred, target, message):
    with pytest.raises(ValueError, match=message):
        Overlap().update(pred, target)
