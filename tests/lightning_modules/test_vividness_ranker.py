"""The ranker of saturations: its pairs, its loss, and that it learns to tell them."""

import math

import numpy as np
import pytest
import torch

from color.lab import rgb_to_lab
from lightning_modules.vividness_ranker import VividnessRanking
from networks.vividness import VividnessRanker
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


def test_an_export_comes_back(tmp_path):
    one, other = make(), make()
    torch.nn.init.normal_(one.ranker.head[0].weight)
    one.export(tmp_path)
    other.load_export(tmp_path)
    image = torch.rand(2, 3, 32, 32)
    assert torch.equal(one.ranker(image), other.ranker(image))
