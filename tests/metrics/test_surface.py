import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy.spatial.distance import directed_hausdorff
from skimage.metrics import hausdorff_distance

from metrics.surface import (
    BoundaryF,
    HausdorffDistance95,
    NormalizedSurfaceDistance,
    SurfaceMetric,
    surface_distances,
)
from tests.metrics.masks import channels, random_masks
from tests.metrics.test_segmentation import EMPTY, SQUARE, VOID

# MONAI 1.6 calls a function of its own with an argument that it deprecates.
MONAI_WARNS = pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")


def measured(metric, *masks, **options):
    metric.update(surface_distances(*masks, **options))
    return metric.compute()


@MONAI_WARNS
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 2.0)])
def test_hd95_and_nsd_equal_monai(spacing):
    pred, target = random_masks(seed=0), random_masks(seed=1)
    surfaces = surface_distances(pred, target, num_classes=3, spacing=spacing)
    theirs = channels(pred, 3), channels(target, 3)
    hd95, nsd = HausdorffDistance95(), NormalizedSurfaceDistance(2.0)
    hd95.update(surfaces)
    nsd.update(surfaces)
    expected = compute_hausdorff_distance(*theirs, percentile=95, spacing=spacing).mean(1)
    torch.testing.assert_close(hd95.all_values(), expected.float(), rtol=1e-5, atol=1e-5)
    expected = compute_surface_dice(*theirs, class_thresholds=[2.0, 2.0], spacing=spacing).mean(1)
    torch.testing.assert_close(nsd.all_values(), expected.float(), rtol=1e-5, atol=1e-5)


@MONAI_WARNS
def test_the_largest_distance_equals_skimage_and_scipy():
    pred, target = random_masks(1, 2, seed=0), random_masks(1, 2, seed=1)
    ((to_target, to_pred),) = surface_distances(pred, target)[0].pairs
    monai = compute_hausdorff_distance(channels(pred, 2), channels(target, 2)).item()
    assert max(to_target.max(), to_pred.max()) == pytest.approx(monai)
    edges = [np.zeros(pred.shape[1:], bool) for _ in range(2)]
    for edge, mask in zip(edges, (pred, target), strict=True):
        inside = np.pad(mask[0].numpy() == 1, 1)
        core = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
        edge[:] = inside[1:-1, 1:-1] & ~core
    assert hausdorff_distance(*edges) == pytest.approx(monai)
    assert to_target.max() == pytest.approx(directed_hausdorff(*map(np.argwhere, edges))[0])


def test_boundary_f_of_a_shifted_square_in_closed_form():
    shifted = SQUARE.roll(1, dims=2)
    # 3 x 3 squares have 8 boundary pixels each; one pixel apart, 4 of them lie on the other's boundary.
    ((to_target, to_pred),) = surface_distances(shifted, SQUARE)[0].pairs
    near = np.mean(to_target == 0), np.mean(to_pred == 0)
    assert measured(BoundaryF(0.0), shifted, SQUARE).mean == pytest.approx(2 * near[0] * near[1] / sum(near))
    assert measured(BoundaryF(1 / np.hypot(8, 8)), shifted, SQUARE).mean == 1
    assert measured(BoundaryF(0.99 / np.hypot(8, 8)), shifted, SQUARE).mean < 1


def test_boundary_f_is_not_changed_by_the_unit():
    pred, target = random_masks(2, 2, seed=0), random_masks(2, 2, seed=1)
    found = [measured(BoundaryF(0.02), pred, target, spacing=(s, s)).mean for s in (1.0, 0.25)]
    assert found[0] == pytest.approx(found[1])


@pytest.mark.parametrize(
    ("pred", "target", "hd95", "share"),
    [
        (EMPTY, EMPTY, 0.0, 1.0),
        (SQUARE, EMPTY, np.hypot(8 * 2.0, 8), 0.0),
        (EMPTY, SQUARE, np.hypot(8 * 2.0, 8), 0.0),
        (SQUARE, SQUARE, 0.0, 1.0),
        (torch.ones_like(EMPTY), torch.ones_like(EMPTY), 0.0, 1.0),
        (SQUARE, VOID, np.nan, np.nan),
    ],
)
def test_empty_cases(pred, target, hd95, share):
    options = {"ignore_index": 255, "spacing": (2.0, 1.0)}
    found = measured(HausdorffDistance95(), pred, target, **options)
    np.testing.assert_allclose(found.mean, hd95, rtol=1e-6)
    assert found.count == (0 if np.isnan(hd95) else 1)
    for metric in (NormalizedSurfaceDistance(), BoundaryF()):
        np.testing.assert_equal(measured(metric, pred, target, **options).mean, share)


def test_a_missing_class_is_within_no_tolerance():
    for metric in (NormalizedSurfaceDistance(100.0), BoundaryF(2.0)):
        assert measured(metric, SQUARE, EMPTY).mean == 0


def test_boundaries_that_never_meet_have_no_boundary_f():
    far = SQUARE.roll((3, 3), dims=(1, 2))
    assert measured(BoundaryF(0.0), far, SQUARE).mean == 0


def test_a_base_without_a_pair_is_named():
    with pytest.raises(NotImplementedError, match="must define pair"):
        SurfaceMetric().update(surface_distances(SQUARE, SQUARE))
