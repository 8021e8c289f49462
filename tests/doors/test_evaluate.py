"""evaluate.py on a tiny colorizer: the report, the baselines beside it, and what it refuses."""

import json
import re

import pytest
from PIL import Image

from tests.doors import calls
from tests.runs.saved_runs import save_autoencoder, save_colorizer


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return save_colorizer(tmp_path_factory.mktemp("run"), sd=False)


def evaluated(run_dir, output, *overrides, **settings):
    words = {"run": run_dir, "output": output, "split": "val", "limit": 6, "device": "cpu"}
    folder = calls.evaluated(*overrides, **(words | settings))
    return json.loads((folder / "metrics.json").read_text())


def test_the_report_names_protocol_counts_spread_baselines_and_what_was_skipped(run_dir, tmp_path, capsys):
    report = evaluated(run_dir, tmp_path)
    rows = report["results"]
    assert list(rows) == ["no prompt", "caption as prompt", "autoencoder's ceiling", "grey", "mean colour"]
    assert report["num_images"] == 6
    assert report["protocol"]["protocol"] == "own"
    assert report["baselines_from"] == "train"
    for values in rows.values():
        for name in ("psnr", "ssim", "delta_e2000", "lightness_error", "colorfulness"):
            assert values[name]["count"] == 6
            assert values[name]["std"] >= 0
            low, high = values[name]["interval"]
            assert low <= values[name]["mean"] <= high
        assert values["colorfulness_difference"]["std"] is None
    assert rows["grey"]["colorfulness"]["mean"] == pytest.approx(0, abs=1.5)
    assert rows["grey"]["lightness_error"]["mean"] <= 0.3
    assert rows["mean colour"]["lightness_error"]["mean"] <= 0.3
    assert rows["mean colour"]["colorfulness"]["mean"] > rows["grey"]["colorfulness"]["mean"]
    for name in ("lpips", "fid"):
        assert name in rows["grey"] or len(report["skipped"][name]) > 20
    assert report["costs"]["no prompt"]["evaluations"] == 4  # two steps with guidance
    assert report["costs"]["no prompt"]["seconds"] > 0
    assert report["run"] == str(run_dir)
    with Image.open(tmp_path / "samples.png") as sheet:
        assert sheet.width > 6 * 128
    shown = capsys.readouterr().out
    assert "mean colour" in shown
    tables = [line for line in shown.splitlines() if line.startswith("|")]
    assert max(map(len, tables)) < 150
    assert sum(line.startswith("| no prompt ") for line in tables) == 2  # figures, and costs below them
    assert all(f"skipped {name}: " in shown for name in report["skipped"])


def test_the_page_shows_baselines_methods_and_the_truth_in_this_order(run_dir, tmp_path):
    evaluated(run_dir, tmp_path, limit=2)
    text = (tmp_path / "index.html").read_text()
    pictures = text.partition("<h2>Pictures</h2>")[2]
    heads = re.findall(r'<th scope="col">([^<]*)</th>', pictures)
    ours = ["no prompt", "caption as prompt", "autoencoder&#x27;s ceiling"]
    assert heads == ["grey", "mean colour", *ours, "truth"]
    assert "Protocol: task=colorization, lpips_net=alex, protocol=own, " in text
    assert "None" not in text
    assert text.index("<h2>Figures</h2>") < text.index("<h2>Costs</h2>")
    assert ".figures td { white-space: nowrap; }" in text


def test_the_figures_repeat_and_the_protocol_changes_them(run_dir, tmp_path):
    first = evaluated(run_dir, tmp_path / "a", limit=2)
    assert evaluated(run_dir, tmp_path / "b", limit=2)["results"] == first["results"]
    other = evaluated(run_dir, tmp_path / "c", "datamodule.size_px=48", limit=2, protocol="val5k", seed=1)
    assert other["protocol"]["protocol"] == "val5k"
    assert other["protocol"]["size_px"] == 256
    assert other["results"]["grey"]["psnr"] != first["results"]["grey"]["psnr"]


def test_an_autoencoder_has_its_reconstruction_alone(tmp_path):
    report = evaluated(save_autoencoder(tmp_path), tmp_path / "out", limit=2)
    assert list(report["results"]) == ["result"]
    assert report["protocol"]["task"] == "reconstruction"
    assert report["costs"]["result"]["evaluations"] is None  # it is encoded and decoded, not called


def test_photos_without_captions_are_coloured_too(run_dir, tmp_path):
    report = evaluated(run_dir, tmp_path, "datamodule=builtin_blobs", limit=2)
    assert list(report["results"]) == ["no prompt", "autoencoder's ceiling", "grey", "mean colour"]


@pytest.mark.parametrize(
    ("settings", "overrides", "text"),
    [
        ({"steps": 0}, (), "steps=0 is not a whole number of at least 1"),
        ({"guidance": float("nan")}, (), "guidance=nan is not a number from 0"),
        ({"split": "train"}, (), "split=train is not val or test"),
        ({"protocol": "coco"}, (), "protocol='coco', expected one of own, val5k, val50k"),
        ({"colorfulness": "loud"}, (), "expected one of hasler, absolute"),
        (
            {"protocol.crpo": "center"},
            (),
            "unknown key 'protocol.crpo' of colorization; did you mean 'crop'?",
        ),
        ({"protocol.size_px": "big"}, (), "size_px=big is not a whole number"),
        ({"stpes": 3}, (), "ColorizeControlNet takes no stpes=; did you mean 'steps'?"),
        ({"spilt": "val"}, (), "ColorizeControlNet takes no spilt=; did you mean 'split'?"),
        ({"limit": 0}, (), "limit=0"),
        ({"num_samples": 3}, (), "num_samples=3 has no effect here, as each row is measured by one sample"),
        ({}, ("datamodule.rot=x",), "unknown key 'datamodule.rot'"),
        ({}, ("datamodule=pictures",), "pictures"),
        ({}, ("trainer=cpu.x",), "trainer"),
        ({}, ("datamodule=photos",), "datamodule.root has no value; set it with datamodule.root=VALUE"),
        ({}, ("module.guidance_scale=3",), "module.guidance_scale=3 has no effect here"),
        ({}, ("datamodule=builtin_unpaired",), "colorization needs data with image, and these have image_a"),
    ],
)
def test_errors_are_one_sentence(run_dir, tmp_path, settings, overrides, text):
    from runs.cli import USER_ERRORS
    from runs.messages import sentence

    with pytest.raises(USER_ERRORS) as caught:
        evaluated(run_dir, tmp_path, *overrides, **settings)
    assert text in sentence(caught.value, list(overrides))
