"""What methods of segmentation share: windows, classes as channels, samples as one result."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from datamodules.mask_files import MaskClasses
from lightning_modules import windows
from lightning_modules.segmenter import (
    EnsembleOptions,
    Segmenter,
    one_hot,
    segmentation_results,
    standardized,
    staple,
)
from lightning_modules.windows import WindowOptions, by_windows


@pytest.mark.parametrize("size", [(32, 32), (37, 61), (5, 90), (1, 1), (100, 16)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
@pytest.mark.parametrize("pixels", [1, 700, 1 << 20])
def test_windows_of_the_identity_give_the_image_back(size, overlap, pixels, monkeypatch):
    image = torch.rand(2, 3, *size)
    seen = []

    def segment(parts, places):
        seen.extend(places)
        assert len(parts) == len(places)
        assert parts.shape[-2] % 4 == parts.shape[-1] % 4 == 0
        assert max(parts.shape[-2:]) <= 16
        return torch.stack([parts, 1 - parts])

    monkeypatch.setattr(windows, "_PIXELS_AT_ONCE", pixels)
    found = by_windows(segment, image, window=14, overlap=overlap, grid_px=4)
    assert found.shape == (2, 2, 3, *size)
    torch.testing.assert_close(found[0], image)
    torch.testing.assert_close(found[1], 1 - image)
    assert seen == [(row, number) for number in range(len(seen) // 2) for row in (0, 1)]


def test_an_image_in_one_window_is_seen_whole():
    image = torch.rand(1, 3, 24, 40)
    shapes = []
    by_windows(
        lambda parts, _: shapes.append(parts.shape[-2:]) or parts[None],
        image,
        window=40,
        overlap=0.5,
        grid_px=8,
    )
    assert shapes == [(24, 40)]


def test_windows_overlap_by_at_least_the_share():
    starts = []
    image = torch.arange(100.0).expand(1, 1, 20, 100)

    def segment(parts, _):
        starts.extend(int(part[0, 0, 0]) for part in parts)
        return parts[None]

    by_windows(segment, image, window=20, overlap=0.5, grid_px=1)
    steps = [b - a for a, b in zip(starts, starts[1:], strict=False)]
    assert starts[0] == 0
    assert starts[-1] == 80
    assert max(steps) <= 10


def test_samples_become_a_mean_its_entropy_and_their_own_masks():
    shares = torch.rand(5, 2, 4, 6, 7).softmax(2)
    results = segmentation_results(shares, torch.rand(2, 3, 6, 7))
    mean = shares.mean(0)
    entropy = -(mean * mean.log()).sum(1) / math.log(4)
    torch.testing.assert_close(torch.stack(results["probability"], 1), mean)
    torch.testing.assert_close(results["uncertainty"], entropy)
    assert torch.equal(results["mask"], mean.argmax(1))
    assert [torch.equal(s, q.argmax(1)) for s, q in zip(results["samples"], shares, strict=True)] == [
        True
    ] * 5
    assert "samples" not in segmentation_results(shares[:1], torch.rand(2, 3, 6, 7))


def test_two_classes_give_the_probability_of_the_foreground():
    share = torch.rand(1, 1, 1, 4, 4)
    results = segmentation_results(torch.cat([1 - share, share], dim=2), torch.rand(1, 3, 4, 4))
    torch.testing.assert_close(results["probability"], share[0, :, 0])


def test_a_majority_counts_classes_and_a_mean_averages_probabilities():
    # Two samples are barely for class 1, one is surely against it.
    foreground = torch.tensor([0.55, 0.55, 0.0])[:, None, None, None, None]
    shares, image = torch.cat([1 - foreground, foreground], dim=2), torch.rand(1, 3, 1, 1)
    assert segmentation_results(shares, image, "mean")["mask"].item() == 0
    majority = segmentation_results(shares, image, "majority")
    assert majority["mask"].item() == 1
    torch.testing.assert_close(majority["probability"].item(), 2 / 3)


def test_staple_trusts_those_who_agree():
    # Four samples agree on a square; a fifth marks everything. A mean of it still says a fifth outside.
    truth = torch.zeros(1, 16, 16, dtype=torch.int64)
    truth[:, 4:12, 4:12] = 1
    masks = torch.stack([truth] * 4 + [torch.ones_like(truth)])
    found = staple(masks, 2)
    assert torch.equal(found.argmax(1), truth)
    assert found[:, 1][truth == 0].max() < 0.01
    assert found[:, 1][truth == 1].min() > 0.99
    shares, image = torch.stack([one_hot(mask, 2) for mask in masks]), torch.rand(1, 3, 16, 16)
    assert segmentation_results(shares, image, "staple")["probability"][truth == 0].max() < 0.01
    assert segmentation_results(shares, image, "mean")["probability"][truth == 0].min() > 0.19


def test_staple_of_several_classes_and_images_takes_each_alone():
    generator = torch.Generator().manual_seed(0)
    truth = (
        torch.randint(0, 3, (2, 8, 8), generator=generator).repeat_interleave(2, 1).repeat_interleave(2, 2)
    )
    wrong = torch.rand(7, *truth.shape, generator=generator) < 0.15
    masks = torch.where(wrong, torch.randint(0, 3, (7, *truth.shape), generator=generator), truth)
    found = staple(masks, 4)
    assert (found.argmax(1) == truth).float().mean() > 0.99
    assert not found[:, 3].any()
    torch.testing.assert_close(found[1:], staple(masks[:, 1:], 4))


def test_staple_of_samples_that_agree_everywhere_is_what_they_say():
    whole = torch.ones(3, 1, 8, 8, dtype=torch.int64)
    found = staple(whole, 2)
    assert torch.equal(found, one_hot(whole[0], 2))
    assert torch.equal(staple(whole[:1] * 0, 2)[:, 0], torch.ones(1, 8, 8))


@pytest.mark.parametrize("fusion", ["mean", "majority", "staple"])
@pytest.mark.parametrize("uncertainty", ["entropy", "disagreement"])
def test_the_uncertainty_is_of_the_given_probabilities_whatever_the_fusion(fusion, uncertainty):
    shares = torch.rand(5, 1, 3, 6, 7, generator=torch.Generator().manual_seed(0)).softmax(2)
    found = segmentation_results(shares, torch.rand(1, 3, 6, 7), fusion, uncertainty=uncertainty)
    mean = shares.mean(0)
    entropy = -(mean * mean.log()).sum(1)
    if uncertainty == "disagreement":
        entropy = entropy + (shares * shares.log()).sum(2).mean(0)
    torch.testing.assert_close(found["uncertainty"], entropy / math.log(3))


def trainer(classes, **settings):
    """What a module sees of a training on data with these classes."""
    sample = {"image": torch.zeros(3, 32, 32), "mask": torch.zeros(32, 32)}
    dataset = SimpleNamespace(classes=classes, __getitem__=lambda self, index: sample)
    return SimpleNamespace(datamodule=SimpleNamespace(train_dataset=dataset, **settings))


@pytest.mark.parametrize(
    ("classes", "settings", "told"),
    [
        (MaskClasses(("a", "b", "c")), {}, "set module.num_classes=3"),
        (MaskClasses(("a", "b"), ignore_index=255), {}, "set module.ignore_index=255"),
        (MaskClasses(("a", "b")), {"size_px": None}, "datamodule.size_px=null"),
    ],
)
def test_data_that_the_model_would_misread_are_refused_before_training(classes, settings, told):
    class Learner(Segmenter):
        def losses(self, batch):
            return {}

    module = Learner(optimizer=None)
    module._trainer = trainer(classes, **settings)
    with pytest.raises(ValueError, match=told):
        module.setup("fit")


def test_void_is_no_class():
    mask = torch.tensor([[[0, 2, 255]]])
    assert one_hot(mask, 3)[0, :, 0].T.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    known = torch.randint(0, 5, (2, 8, 9))
    assert torch.equal(one_hot(known, 5), F.one_hot(known, 5).movedim(-1, 1).float())


def test_images_are_standardized_one_by_one_and_a_flat_one_is_zero():
    image = torch.stack([torch.rand(3, 9, 9) * 0.1, torch.rand(3, 9, 9), torch.full((3, 9, 9), 0.3)])
    found = standardized(image)
    torch.testing.assert_close(found[:2].std(dim=(1, 2, 3)), torch.ones(2))
    torch.testing.assert_close(found.mean(dim=(1, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    assert found[2].abs().max() < 1e-3


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"window": 0}, "window=0"),
        ({"overlap": 1.0}, r"overlap=1.0 is not a share"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_options_that_make_no_sense_are_refused(given, told):
    with pytest.raises(ValueError, match=told):
        EnsembleOptions(**given)
    if "steps" not in given:
        with pytest.raises(ValueError, match=told):
            WindowOptions(**given)


def test_an_unknown_fusion_is_refused():
    with pytest.raises(ValueError, match="fusion"):
        EnsembleOptions(fusion="best")


def test_the_overlay_shows_the_photo_outside_and_colour_inside():
    image = torch.rand(1, 3, 4, 4)
    shares = torch.zeros(1, 1, 2, 4, 4)
    shares[:, :, 0] = 1
    shares[..., :2, 0, :], shares[..., 0, 0, :], shares[..., 1, 0, :] = 0, 0, 1
    overlay = segmentation_results(shares, image)["overlay"]
    assert overlay.shape == image.shape
    assert torch.equal(overlay[..., 1:, :], image[..., 1:, :])
    assert not torch.equal(overlay[..., 0, :], image[..., 0, :])
