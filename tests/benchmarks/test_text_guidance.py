"""The share of photos whose hue follows a colour word."""

import pytest
import torch

from benchmarks.text_guidance import GuidanceOptions, distance, mean_hue, measure
from color.gamut import clip_chroma
from color.names import hue_of


def tinted(hue: float, count: int = 2) -> torch.Tensor:
    angle = torch.deg2rad(torch.tensor(hue))
    lab = torch.stack([torch.tensor(60.0), 20 * angle.cos(), 20 * angle.sin()]).view(1, 3, 1, 1)
    return (clip_chroma(lab.expand(count, 3, 8, 8).clone()) * 255).round().byte()


def test_mean_hue_is_the_angle_of_ab_and_distances_go_the_short_way():
    for hue in (30.0, 110.0, 250.0):
        assert distance(mean_hue(tinted(hue)), hue).max() < 2
    assert distance(torch.tensor([350.0, 10.0, 190.0]), 0.0).tolist() == [10.0, 10.0, 170.0]


def test_shares_count_the_photos_that_came_nearer(runs, monkeypatch):
    """Drawings by hand: grey-green without a prompt; "red" obeys for all photos, "blue" for the first alone."""

    def by_hand(module, **settings):
        assert settings == {"num_steps": 2, "guidance_scale": 3.0}

        def draw(part, seed):
            hues = {"": [130.0] * 3, "red": [hue_of("red")] * 3, "blue": [hue_of("blue"), 130.0, 120.0]}
            pictures = [tinted(hue, 1) for hue in hues[part.captions[0]]]
            return torch.cat(pictures).float() / 255

        return draw

    monkeypatch.setattr("benchmarks.text_guidance.plain_draw", by_hand)
    options = GuidanceOptions(
        run=runs["walk"], words="red, blue", limit=3, steps=2, guidance=3.0, device="cpu"
    )
    found = measure(options, [])
    assert found == pytest.approx({"red": 1.0, "blue": 1 / 3, "all": 2 / 3})


def test_a_tiny_run_is_measured_with_its_prompts(runs):
    found = measure(GuidanceOptions(run=runs["controlnet"], words="red", limit=2, device="cpu"), [])
    assert set(found) == {"red", "all"}
    assert found["red"] in (0.0, 0.5, 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "foo"}, "split=foo is not train, val or test"),
        ({"limit": 0}, "limit=0 leaves no photo to measure"),
        ({"limit": -1}, "limit=-1 leaves no photo to measure"),
        ({"steps": 0}, "steps=0 is not a whole number of at least 1"),
        ({"guidance": float("nan")}, "guidance=nan is not a number from 0; 1 is off"),
        ({"words": "red,loud"}, "words=red,loud: hue_of got 'loud', expected one of"),
    ],
)
def test_bad_options_are_named(runs, changes, message):
    options = GuidanceOptions(**({"run": runs["walk"], "device": "cpu"} | changes))
    with pytest.raises(ValueError) as caught:
        measure(options, [])
    assert message in str(caught.value)


def test_a_run_that_colours_nothing_is_named():
    with pytest.raises(ValueError, match="autoencoder is a run of Autoencoder, which colours no photos"):
        measure(GuidanceOptions(run="autoencoder", device="cpu"), [])
