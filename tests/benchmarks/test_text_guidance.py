"""The share of photos whose hue follows a colour word."""

import pytest
import torch

from benchmarks.text_guidance import GuidanceOptions, distance, mean_hue, measure
from color.gamut import clip_chroma
from color.names import hue_of
from doors.options import parse
from lightning_modules.colorize_controlnet import ColorizeControlNet
from tests.runs.saved_runs import save_autoencoder, save_colorizer


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return save_colorizer(tmp_path_factory.mktemp("run"), sd=False)


def measured(run, **settings):
    given = {"run": run, "device": "cpu", "split": "val"} | settings
    words = [f"{key}={value}" for key, value in given.items()]
    return measure(parse(GuidanceOptions, words, ""))


def tinted(hue: float, count: int = 2) -> torch.Tensor:
    angle = torch.deg2rad(torch.tensor(hue))
    lab = torch.stack([torch.tensor(60.0), 20 * angle.cos(), 20 * angle.sin()]).view(1, 3, 1, 1)
    return clip_chroma(lab.expand(count, 3, 8, 8).clone())


def test_mean_hue_is_the_angle_of_ab_and_distances_go_the_short_way():
    for hue in (30.0, 110.0, 250.0):
        assert distance(mean_hue(tinted(hue)), hue).max() < 2
    assert distance(torch.tensor([350.0, 10.0, 190.0]), 0.0).tolist() == [10.0, 10.0, 170.0]


def test_shares_count_the_photos_that_came_nearer(run_dir, monkeypatch):
    """Drawings by hand: grey-green without a prompt; "red" obeys for all photos, "blue" for the first alone."""

    def by_hand(self, batch, options):
        assert (options.steps, options.guidance) == (2, 3.0)
        hues = {"": [130.0] * 3, "red": [hue_of("red")] * 3, "blue": [hue_of("blue"), 130.0, 120.0]}
        pictures = [tinted(hues[options.prompt][index], 1) for index in range(len(batch["index"]))]
        return {"image": torch.cat(pictures)}

    monkeypatch.setattr(ColorizeControlNet, "results", by_hand)
    found = measured(run_dir, words="red, blue", limit=3, steps=2, guidance=3.0)
    assert found == pytest.approx({"red": 1.0, "blue": 1 / 3, "all": 2 / 3})


def test_a_tiny_run_is_measured_with_its_prompts(run_dir):
    found = measured(run_dir, words="red", limit=2)
    assert set(found) == {"red", "all"}
    assert found["red"] in (0.0, 0.5, 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "foo"}, "split=foo is not val or test"),
        ({"limit": 0}, "limit=0 leaves no image to measure"),
        ({"steps": 0}, "steps=0 is not a whole number of at least 1"),
        ({"words": "red,loud"}, "words=red,loud: hue_of got 'loud', expected one of"),
    ],
)
def test_bad_options_are_named(run_dir, changes, message):
    with pytest.raises(ValueError) as caught:
        measured(run_dir, **changes)
    assert message in str(caught.value)


def test_a_run_that_colours_nothing_is_named(tmp_path):
    with pytest.raises(ValueError, match="is a run of Autoencoder, which colours no photos"):
        measured(save_autoencoder(tmp_path))
