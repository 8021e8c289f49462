"""Options check their values where they are made, each once; the ranker of chroma=auto is loaded on request."""

import pytest

from lightning_modules.chroma_choice import load_ranker
from lightning_modules.color_options import ColorizationOptions, chroma
from lightning_modules.options import PromptOptions, size
from lightning_modules.vividness_ranker import VividnessRanking
from networks.vividness import ClipVividness, VividnessRanker
from tests.models import tiny_settings
from tests.networks.test_vividness import save_clip


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"steps": 0}, "steps=0 is not a whole number of at least 1"),
        ({"guidance": float("nan")}, "guidance=nan is not a number from 0; 1 is off"),
        ({"guidance": -1.0}, "guidance=-1 is not a number from 0; 1 is off"),
        ({"guidance": float("inf")}, "guidance=inf is not a number from 0; 1 is off"),
        ({"num_samples": 0}, "num_samples=0 asks for no result; give at least 1"),
        ({"seed": 1 << 63}, "seed=9223372036854775808 does not fit in 64 bits"),
    ],
)
def test_what_no_sampler_can_do_is_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        PromptOptions(**settings)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"short_px": 0}, "short_px=0 is no working size"),
        ({"chroma": 1.0, "ranker": "mine"}, "ranker=mine has no effect without chroma=auto"),
        ({"ranker": "mine"}, "ranker=mine has no effect without chroma=auto; add that, or leave"),
    ],
)
def test_what_no_colorizer_can_do_is_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        ColorizationOptions(**settings)


def test_chroma_is_a_number_or_auto():
    assert [chroma(text) for text in ("0.8", "0", "auto")] == [0.8, 0.0, "auto"]
    for wrong in ("half", "-1", "nan", "inf", "AUTO "):
        with pytest.raises(ValueError, match=f"chroma={wrong} is neither a number from 0 nor auto; 0 is gre"):
            chroma(wrong)


def test_sizes_are_height_by_width():
    assert size("512x768") == (512, 768)
    for wrong in ("12", "0x5", "x", "5x-1", "axb"):
        with pytest.raises(ValueError, match=f"size={wrong} is not HxW in pixels"):
            size(wrong)


def test_rankers_come_from_runs_and_from_clip(tmp_path):
    def load(name: str) -> VividnessRanking:
        if name == "nobody":
            raise FileNotFoundError(f"run={name}: no such run folder or checkpoint")
        asked.append(name)
        return VividnessRanking(
            ranker=VividnessRanker(channels=(8, 16)), optimizer=tiny_settings()["optimizer"]
        )

    asked: list[str] = []
    assert isinstance(load_ranker(None, load), VividnessRanker)
    load_ranker("mine", load)
    assert asked == ["vividness_ranker", "mine"]
    save_clip(tmp_path / "clip")
    assert isinstance(load_ranker(f"clip:{tmp_path / 'clip'}", load), ClipVividness)
    with pytest.raises(FileNotFoundError, match="ranker=nobody: no such run folder or checkpoint"):
        load_ranker("nobody", load)
