"""The ranker of saturations: its pairs, its loss, and that it learns to tell them."""

import math

import numpy as np
import pytest
import torch

from color.lab import rgb_to_lab
from doors.export import save_exported
from lightning_modules.vividness_ranker import VividnessRanking, disturbed
from networks.vividness import VividnessRanker
from runs.load import load_exported
from tests.lightning_modules.pictures import astronaut_batch


def make(**settings):
    torch.manual_seed(0)
    ranker = VividnessRanker(channels=(8, 16))
    return VividnessRanking(ranker=ranker, optimizer=lambda p: torch.optim.AdamW(p, lr=3e-3), **settings)


def test_scales_are_symmetric_in_their_logarithm_and_never_near_one():
    logs = make(max_scale=4.0).scales(np.linspace(0, 1, 1001)).log().flatten()
    assert float(logs.abs().min()) >= math.log(1.1) - 1e-6
    assert math.exp(float(logs.abs().max())) == pytest.approx(4.0)
    assert abs(float(logs.mean())) < 5e-3


def test_a_pair_differs_in_chroma_alone():
    module, image = make(), astronaut_batch()["image"]
    seen = []
    module.ranker.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    module.pair_scores(image, torch.full((4, 1, 1, 1), 0.5))
    true, changed = seen[0].chunk(2)
    assert torch.equal(true, image)
    assert torch.allclose(rgb_to_lab(changed)[:, 0], rgb_to_lab(image)[:, 0], atol=0.1)
    assert torch.allclose(rgb_to_lab(changed)[:, 1:], 0.5 * rgb_to_lab(image)[:, 1:], atol=0.2)


def test_it_learns_to_tell_the_true_saturation(fit):
    module, batch = make(), astronaut_batch()
    fit(module, batch, steps=60)
    with torch.no_grad():
        for scale in (0.4, 2.5):
            true, other = module.eval().pair_scores(batch["image"], torch.full((4, 1, 1, 1), scale))
            assert (true > other).all()  # a coin would be right on half of them
    panels = module.sample_panels(batch)
    right = (panels["picked"] == panels["chroma x 1"]).flatten(1).all(1)
    assert int(right.sum()) >= 3  # of 4 photos and 5 scales


def test_a_useless_range_is_refused():
    with pytest.raises(ValueError, match="module.max_scale is 1.0; expected above 1.1"):
        make(max_scale=1.0)


def test_data_without_one_image_are_refused():
    batch = {"image_a": torch.rand(1, 3, 32, 32), "index": torch.tensor([0])}
    for call in (make().losses, make().sample_panels):
        with pytest.raises(ValueError, match="needs data with image, and these have image_a, index; choose"):
            call(batch)


def test_an_export_comes_back(tmp_path):
    one, other = make(), make()
    torch.nn.init.normal_(one.ranker.head[0].weight)
    save_exported(one, tmp_path)
    load_exported(other, tmp_path)
    image = torch.rand(2, 3, 32, 32)
    assert torch.equal(one.ranker(image), other.ranker(image))


def test_a_disturbance_turns_hues_and_flattens_colours_and_keeps_lightness_and_chroma():
    image = 0.35 + 0.3 * astronaut_batch()["image"]  # inside the gamut at any hue
    lab = rgb_to_lab(image)
    zero = torch.zeros(len(image))
    assert torch.allclose(disturbed(image, zero, zero), image, atol=1e-4)
    turned = rgb_to_lab(disturbed(image, zero + math.pi / 2, zero))
    expected = torch.cat([lab[:, :1], -lab[:, 2:], lab[:, 1:2]], dim=1)
    assert torch.allclose(turned, expected, atol=0.05)
    flat = rgb_to_lab(disturbed(image, zero, zero + 1))
    assert torch.allclose(flat[:, :1], lab[:, :1], atol=0.05)
    assert flat[:, 1:].std((2, 3)).mean() < 0.9 * lab[:, 1:].std((2, 3)).mean()
    chroma, before = (x[:, 1:].norm(dim=1).mean((1, 2)) for x in (flat, lab))
    assert torch.allclose(chroma, before, rtol=0.05)


def test_a_share_that_is_none_is_refused():
    with pytest.raises(ValueError, match="module.disturb_prob is 1.5; expected a probability"):
        make(disturb_prob=1.5)
