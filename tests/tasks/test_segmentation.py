from types import SimpleNamespace

import pytest
import torch

from color.classes import class_colours
from tasks.base import Scores
from tasks.segmentation import Segmentation
from tests.metrics.masks import random_masks

OVERLAP = {"dice", "iou", "dice_pooled", "iou_pooled", "hd95", "nsd", "boundary_f"}


def batch(num_classes: int = 2) -> dict:
    return {
        "index": torch.arange(4),
        "name": list("abcd"),
        "image": torch.rand(4, 3, 40, 56),
        "mask": random_masks(num_classes=num_classes),
        "masks": [random_masks(2, num_classes, seed=seed) for seed in range(4)],
    }


def test_a_mask_alone_has_what_needs_no_more_and_says_what_the_rest_needs():
    scores, given = Scores(Segmentation()), batch()
    del given["masks"]
    scores.update({"mask": given["mask"]}, given)
    found = scores.compute()
    assert set(found) == OVERLAP
    assert found["hd95"].mean == 0
    assert all(found[key].mean == 1 for key in OVERLAP - {"hd95"})
    assert scores.skipped["ece"] == "results or data hold no probability"
    assert scores.skipped["ged"] == "results or data hold no samples and no masks"
    assert scores.skipped["uncertainty_auroc"] == "results or data hold no uncertainty"


@pytest.mark.parametrize("num_classes", [2, 4])
def test_everything_is_measured_with_samples_raters_and_probabilities(num_classes):
    scores, given = Scores(Segmentation(num_classes=num_classes)), batch(num_classes)
    probability = torch.rand(4, num_classes, 40, 56).softmax(1)
    results = {
        "mask": random_masks(num_classes=num_classes, seed=5),
        "probability": probability[:, 1] if num_classes == 2 else probability,
        "uncertainty": torch.rand(4, 40, 56),
        "samples": [random_masks(num_classes=num_classes, seed=seed) for seed in range(6, 9)],
    }
    scores.update(results, given)
    scores.update(results, given)
    found = scores.compute()
    assert set(found) == set(Segmentation().metrics())
    assert not scores.skipped
    assert all(summary.count == 8 for summary in found.values())
    assert found["dice"].interval is not None
    assert found["dice_pooled"].interval is None
    assert scores.per_image()["dice"].shape == (8,)
    assert {column.key for column in Segmentation.columns} == set(found)


@pytest.mark.parametrize("which", [0, 1])
def test_no_figure_is_that_of_the_images_of_some_batches_alone(which):
    scores, given = Scores(Segmentation()), batch()
    rows = [{"mask": given["mask"]}, {"mask": given["mask"], "probability": given["mask"].float()}]
    for row in (rows[which], rows[1 - which]):
        scores.update(row, given)
    assert set(scores.compute()) == set(scores.per_image()) | {"dice_pooled", "iou_pooled"} == OVERLAP
    assert scores.skipped["ece"] == scores.skipped["brier"] == "results or data hold no probability"


def test_several_samples_of_the_mask_are_measured_by_the_first_and_as_samples():
    scores, given = Scores(Segmentation()), batch()
    scores.update({"mask": [given["mask"], random_masks(num_classes=2, seed=3)]}, given)
    assert scores.compute()["dice"].mean == 1
    assert "ged" in scores.compute()


def test_the_baseline_is_background_and_scores_nothing_where_there_is_something():
    scores, given = Scores(Segmentation()), batch()
    (row,) = Segmentation().baselines(given).items()
    assert row[0] == "all background"
    scores.update(row[1], given)
    assert scores.compute()["dice"].mean == 0


def test_the_overlay_colours_classes_and_leaves_background_and_void():
    given = batch(3)
    given["mask"][:, :5] = 255
    task = Segmentation(num_classes=3, ignore_index=255)
    shown, mask = task.truth(given), given["mask"]
    assert shown.shape == (4, 3, 40, 56)
    same = (shown == given["image"]).all(1)
    assert same[(mask == 0) | (mask == 255)].all()
    painted = shown.movedim(1, -1)[mask == 2]
    expected = 0.5 * given["image"].movedim(1, -1)[mask == 2] + 0.5 * torch.tensor([0.0, 128 / 255, 0.0])
    torch.testing.assert_close(painted, expected)
    assert task.picture({"mask": mask.where(mask < 3, 0)}, given).equal(shown)


def test_colours_are_those_of_pascal_voc():
    expected = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
    torch.testing.assert_close(class_colours(5) * 255, torch.tensor(expected).float())
    assert len(class_colours(200).unique(dim=0)) == 200


def test_the_data_set_says_its_classes_and_the_protocol_goes_first():
    classes = SimpleNamespace(names=tuple("abcdefghijk"), ignore_index=255)
    data = SimpleNamespace(val_dataset=SimpleNamespace(classes=classes), test_dataset=None)
    assert Segmentation.for_data(data).num_classes == 11
    task = Segmentation.for_data(data, num_classes=12, spacing=[0.5, 2])
    assert (task.num_classes, task.ignore_index, task.spacing) == (12, 255, (0.5, 2.0))
    assert Segmentation.for_data(None) == Segmentation()


def test_entries_of_different_sizes_are_refused_with_the_remedy():
    given = {"mask": [torch.zeros(8, 8, dtype=torch.int64), torch.zeros(9, 8, dtype=torch.int64)]}
    with pytest.raises(ValueError, match="set datamodule.batch_size=1"):
        Segmentation().baselines(given)
    with pytest.raises(ValueError, match="the batch has no 'mask', only image, so this task"):
        Segmentation().truth({"image": torch.rand(1, 3, 8, 8)})
    alone = {"mask": given["mask"][:1]}
    assert Segmentation().baselines(alone)["all background"]["mask"].shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("fields", "message"), [({"num_classes": 1}, "at least 2"), ({"spacing": (0, 1)}, "above 0")]
)
def test_wrong_options_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Segmentation(**fields)
