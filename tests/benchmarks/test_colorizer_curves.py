"""Curves of a tiny colorizer, and a ranker's gain against an oracle's."""

import csv
import json

import pytest
import torch

from benchmarks.colorizer_curves import CurveOptions, measure, parse_tuning, parse_values, quality
from benchmarks.colorizer_figures import Figures
from benchmarks.colorizer_hints import check_hints, hinted_draw, patches
from benchmarks.colorizer_photos import draw_all, eight_bit, load_colorizer, plain_draw, read_photos
from benchmarks.colorizer_vividness import BEST_FIXED, NEAREST, RANKER, TUNED, best_scale, distances, picked
from color.lab import lightness
from color.transfer import transfer_chroma_exact
from diffusion.bridge_paths import BridgePath
from diffusion.bridge_samplers import BridgeSampler
from lightning_modules.colorizer import CHROMA_SCALES
from lightning_modules.diffusing_colors import DiffusingColors
from metrics.color import colorfulness
from runs.build import build
from tests.benchmarks.small_runs import photos
from tests.models import tiny_parts, tiny_settings
from tests.runs.saved_runs import datamodule, save_run

SCALES = [0.5, 0.8, 1.0, 1.3, 2.0]


def measured(run, what, output, **settings):
    options = CurveOptions(
        run=run, what=what, output=str(output), limit=3, rounds=1, device="cpu", **settings
    )
    return measure(options, ["datamodule=builtin_photos"])["rows"]


def test_steps_are_evaluations_and_the_files_hold_the_rows(runs, tmp_path, capsys):
    rows = measured(runs["walk"], "steps", tmp_path, values="1,4", seeds="0,1")
    assert [row["evaluations_per_image"]["mean"] for row in rows.values()] == [1, 4]
    assert rows["1"]["delta_e2000"]["num"] == 1  # no noise: one draw is all
    assert rows["1"]["delta_e2000"]["std"] is None
    assert json.loads((tmp_path / "steps.json").read_text())["rows"] == rows
    with open(tmp_path / "steps.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["steps"] for line in lines] == ["1", "4"]
    assert float(lines[1]["delta_e2000"]) == rows["4"]["delta_e2000"]["mean"]
    assert "seconds per image" in " ".join(capsys.readouterr().out.split())


def test_more_chroma_is_more_colour_and_what_predict_draws(runs, tmp_path):
    rows = measured(runs["noisy"], "chroma", tmp_path, values="0,0.5,1,1.5", seeds="3")
    found = [row["colorfulness"]["mean"] for row in rows.values()]
    assert found == sorted(found)
    assert found[0] < 1.5 < found[-1]
    photos = read_photos(build(datamodule(), "datamodule"), "val", limit=3)
    module = load_colorizer(runs["noisy"], torch.device("cpu")).module
    plain = Figures(eight_bit(photos.image))(draw_all(plain_draw(module, chroma_scale=1.5), photos, 3))
    assert rows["1.5"]["delta_e2000"]["mean"] == pytest.approx(plain["delta_e2000"])


def test_only_seeds_that_change_something_are_drawn(runs, tmp_path):
    rows = measured(runs["noisy"], "steps", tmp_path, values="1,2", seeds="0,5")
    assert [row["delta_e2000"]["num"] for row in rows.values()] == [1, 2]  # a single step adds no noise
    assert rows["2"]["delta_e2000"]["std"] > 0
    for run, num in (("walk", 1), ("noisy", 2)):
        rows = measured(runs[run], "chroma", tmp_path, values="0.5,1", seeds="0,5")
        assert [row["delta_e2000"]["num"] for row in rows.values()] == [num, num]


def test_hints_keep_all_seeds_as_their_patches_vary():
    module = hinted_module()
    draws = {"3": hinted_draw(module, 3)}
    few = photos()
    rows = quality(module, "hints", draws, few, [0, 1], Figures(eight_bit(few.image)))
    assert rows["3"]["delta_e2000"].num == 2
    assert rows["3"]["delta_e2000"].std > 0


def hinted_module() -> DiffusingColors:
    """A deterministic walk that takes hints, with weights that show them."""
    module = DiffusingColors(
        path=BridgePath(),
        parts=tiny_parts(),
        hint_prob=0.5,
        **tiny_settings(sampler=BridgeSampler(num_steps=2)),
    ).eval()
    module.parts.vae.register_to_config(scaling_factor=0.05)  # an untrained decoder hardly shows colour
    torch.nn.init.normal_(module.parts.unet.conv_in.weight)
    return module


def test_hints_reach_the_network_and_zero_patches_are_none():
    module = hinted_module()
    plain = plain_draw(module)(photos(), 0)
    assert torch.allclose(hinted_draw(module, 0)(photos(), 0), plain, atol=1e-6)
    assert not torch.allclose(hinted_draw(module, 5)(photos(), 0), plain, atol=1e-3)
    check_hints(module, "run")


def test_patches_are_keyed_by_photo_and_grow():
    masks = [patches(photos(4), count, 0) for count in (0, 1, 5)]
    assert not masks[0].any()
    assert (masks[1].flatten(1).sum(1) > 0).all()
    assert (masks[2] >= masks[1]).all()
    assert masks[2].sum() > masks[1].sum()
    assert torch.equal(patches(photos(4).part(2, 3), 5, 0), masks[2][2:3])
    assert not torch.equal(patches(photos(4), 5, 1), masks[2])


def saturated(seed: int = 0) -> tuple[Figures, torch.Tensor]:
    """Figures of photos, and candidates of the same photos whose colour is off by a factor of their own."""
    image = photos(8).image
    given = lightness(image)
    off = torch.empty(8, 1, 1, 1).uniform_(0.4, 1.6, generator=torch.Generator().manual_seed(seed))
    drawn = transfer_chroma_exact(given, image, chroma_scale=off)
    scaled = [transfer_chroma_exact(given, drawn, chroma_scale=scale) for scale in SCALES]
    return Figures(eight_bit(image)), eight_bit(torch.stack(scaled))


@pytest.mark.parametrize("seed", range(3))
def test_an_oracle_is_never_worse_than_a_fixed_scale(seed):
    figures, images = saturated(seed)

    def oracle(candidates):
        return -(colorfulness(candidates, variant="absolute").double() - figures.true_colorfulness).abs()

    rows = picked(images, oracle, SCALES, figures, 4)
    fixed = {scale: rows[f"{scale:g}"]["colorfulness_distance"] for scale in SCALES}
    assert rows[RANKER]["colorfulness_distance"] < min(fixed.values())
    assert rows[RANKER]["colorfulness_distance"] == pytest.approx(rows[NEAREST]["colorfulness_distance"])
    best = min(fixed, key=fixed.__getitem__)
    assert rows[BEST_FIXED] == rows[f"{best:g}"]
    assert rows[TUNED] == rows["2"]
    for name, key, number in ((BEST_FIXED, "best_fixed", SCALES.index(best)), (TUNED, "tuned_fixed", 4)):
        gain = rows[RANKER]["colorfulness_distance"] - rows[name]["colorfulness_distance"]
        assert rows[RANKER][f"minus_{key}_scale"] == pytest.approx(gain)
        distance = distances(images, figures).numpy()
        paired = distance.min(0) - distance[number]
        error = paired.std(ddof=1) / len(paired) ** 0.5
        assert rows[RANKER][f"minus_{key}_scale_se"] == pytest.approx(error)


def test_a_ranker_that_likes_one_scale_is_that_scale():
    figures, images = saturated()
    liked = iter([0.0, 0.0, 0.0, 1.0, 0.0])
    rows = picked(images, lambda candidates: torch.full((len(candidates),), next(liked)), SCALES, figures, 0)
    assert {k: rows[RANKER][k] for k in rows["1.3"]} == rows["1.3"]
    assert rows[RANKER]["chroma_scale"] == pytest.approx(1.3)


def test_a_trained_ranker_is_compared(runs, tmp_path):
    save_run(
        tmp_path / "ranker",
        {
            "_target_": "lightning_modules.vividness_ranker.VividnessRanking",
            "ranker": {"_target_": "networks.vividness.VividnessRanker", "channels": [8, 16]},
        },
    )
    ranker = str(tmp_path / "ranker")
    rows = measured(runs["walk"], "ranker", tmp_path, ranker=ranker, tune_limit=4, seeds="0,1")
    assert list(rows) == [*[f"{scale:g}" for scale in CHROMA_SCALES], TUNED, BEST_FIXED, RANKER, NEAREST]
    assert rows[RANKER]["colorfulness_distance"]["num"] == 1  # no noise
    tuning = read_photos(build(datamodule(), "datamodule"), "train", limit=4)
    module = load_colorizer(runs["walk"], torch.device("cpu")).module
    tuned = CHROMA_SCALES[best_scale(module, tuning, [0], list(CHROMA_SCALES), "absolute")]
    assert rows[TUNED] == rows[f"{tuned:g}"]
    assert rows[NEAREST]["colorfulness_distance"]["mean"] <= rows[RANKER]["colorfulness_distance"]["mean"]
    assert rows[RANKER]["minus_tuned_fixed_scale_se"]["mean"] >= 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"what": "size"}, "what=size is not one of steps, chroma, hints, ranker"),
        (
            {"what": "steps", "values": "1,x"},
            "values=1,x is not a list of numbers, such as values=1,2,5,10,20,50",
        ),
        ({"what": "steps", "values": "0,1"}, "values=0,1: what=steps takes whole numbers of at least 1"),
        ({"what": "hints", "values": "1.5"}, "values=1.5: what=hints takes whole numbers of at least 0"),
        ({"what": "chroma", "values": "-1"}, "values=-1: what=chroma takes numbers of at least 0"),
        ({"what": "chroma", "values": "nan"}, "values=nan: what=chroma takes numbers of at least 0"),
        (
            {"what": "steps", "ranker": "x"},
            "ranker=x has no effect on what=steps; give what=ranker, or leave ranker out",
        ),
        (
            {"what": "chroma", "tune_limit": 5},
            "tune_limit=5 has no effect on what=chroma; give what=ranker, or leave tune_limit out",
        ),
    ],
)
def test_values_that_make_no_sense_are_named(settings, message):
    with pytest.raises(ValueError) as caught:
        parse_values(CurveOptions(run="x", output="y", **settings))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tune_split": "all"}, "tune_split=all is not train, val or test"),
        ({"tune_limit": 0}, "tune_limit=0 leaves no photo to tune on; give at least 1"),
        (
            {"split": "train"},
            "split=train is measured and tuned on, so that the fixed scale would know the photos; give another tune_split "
            "or split",
        ),
    ],
)
def test_a_tuning_that_makes_no_sense_is_named(settings, message):
    with pytest.raises(ValueError) as caught:
        parse_tuning(CurveOptions(run="x", output="y", what="ranker", **settings))
    assert str(caught.value) == message


def test_a_run_without_hints_or_steps_says_so(runs, tmp_path):
    with pytest.raises(
        ValueError, match="has not learned to take hints; give a run of diffusing_colors that was"
    ):
        measured(runs["walk"], "hints", tmp_path)
    with pytest.raises(ValueError, match=r"sampler.num_steps is 1001, but the path has 1000 timesteps"):
        measured(runs["walk"], "steps", tmp_path, values="1,1001")
