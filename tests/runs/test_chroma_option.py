"""chroma= and ranker= at predict and evaluate."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from lightning_modules.colorizer import CHROMA_SCALES
from networks.vividness import ClipVividness, VividnessRanker
from runs.evaluation import EvaluateOptions, evaluate
from runs.load import load_run
from runs.prediction import PredictOptions, predict
from runs.vividness import chroma_scale, load_ranker
from tests.networks.test_vividness import save_clip
from tests.runs.saved_runs import save_colorizer, save_ranker

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        "run": str(save_colorizer(folder / "colorizer", sd=False)),
        "ranker": str(save_ranker(folder / "ranker")),
    }


def test_a_number_or_auto():
    assert [chroma_scale(text, None) for text in ("0.8", "0", None, "", "auto")] == [
        0.8,
        0.0,
        None,
        None,
        None,
    ]
    assert chroma_scale("auto", "mine") is None
    for wrong in ("half", "-1", "nan", "inf", "AUTO "):
        with pytest.raises(
            ValueError, match=f"chroma={wrong} is neither a number from 0 nor auto; 0 is grey, 1 as"
        ):
            chroma_scale(wrong, None)
    for chroma in (None, "1"):
        with pytest.raises(
            ValueError, match="ranker=mine has no effect without chroma=auto; add that, or leave"
        ):
            chroma_scale(chroma, "mine")


def test_rankers_come_from_runs_and_from_clip(runs, tmp_path):
    assert load_ranker("1", None, CPU) is None
    found = load_ranker("auto", runs["ranker"], CPU)
    assert isinstance(found, VividnessRanker)
    assert not found.training
    save_clip(tmp_path / "clip")
    clip = load_ranker("auto", f"clip:{tmp_path / 'clip'}", CPU)
    assert isinstance(clip, ClipVividness)
    assert clip(torch.rand(2, 3, 24, 40)).shape == (2,)


def test_what_is_no_ranker_is_one_sentence(runs, tmp_path):
    (tmp_path / "empty").mkdir()
    for name, kind, message in (
        ("nobody", FileNotFoundError, "ranker=nobody: no such run folder or checkpoint; shipped models are:"),
        (
            runs["run"],
            ValueError,
            "is a run of ColorizeControlNet; give a run of experiment=vividness_ranker, or",
        ),
        (f"clip:{tmp_path / 'empty'}", FileNotFoundError, "no CLIP model at"),
    ):
        with pytest.raises(kind) as caught:
            load_ranker("auto", name, CPU)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_default_ranker_is_the_shipped_one(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("runs.load.PRETRAINED", tmp_path)
    with pytest.raises(FileNotFoundError, match="ranker=vividness_ranker: no such run folder or checkpoint"):
        load_ranker("auto", None, CPU)
    shipped = tmp_path / "vividness_ranker"
    shipped.mkdir()
    shutil.copy(Path(runs["ranker"], "config.yaml"), shipped)
    load_run(runs["ranker"]).module.export(shipped)
    assert isinstance(load_ranker("auto", None, CPU), VividnessRanker)


def test_predict_takes_the_scale_that_it_logs(runs, tmp_path, caplog):
    caplog.set_level("INFO")
    Image.fromarray(skimage.data.astronaut()[:40, :50]).save(tmp_path / "a.png")
    options = {"run": runs["run"], "input": str(tmp_path / "a.png"), "short_px": 16, "device": "cpu"}
    auto = {"chroma": "auto", "ranker": runs["ranker"]}
    assert predict(PredictOptions(**options, **auto, output=str(tmp_path / "auto"))) == 0
    (line,) = [m for m in caplog.messages if m.startswith("chroma=auto: a.png x ")]
    scale = line.rpartition(" ")[2]
    assert float(scale) in CHROMA_SCALES
    assert predict(PredictOptions(**options, chroma=scale, output=str(tmp_path / "fixed"))) == 0
    found, fixed = (np.asarray(Image.open(tmp_path / name / "a.png")) for name in ("auto", "fixed"))
    assert np.array_equal(found, fixed)


def test_evaluate_reports_the_ranker(runs, tmp_path, caplog):
    caplog.set_level("INFO")
    options = {"split": "val", "limit": 2, "device": "cpu", "output": str(tmp_path)}
    folder = evaluate(EvaluateOptions(**runs, **options, chroma="auto"), [])
    report = json.loads((folder / "metrics.json").read_text())
    assert report["draw"]["chroma_scale"] == "auto"
    assert report["draw"]["ranker"] == runs["ranker"]
    assert sum(m.startswith("chroma=auto: ") for m in caplog.messages) == 2  # with and without captions
