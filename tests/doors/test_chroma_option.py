"""chroma= and ranker= at predict and evaluate."""

import json

import numpy as np
import pytest
import skimage.data
from PIL import Image

from doors.export import export
from doors.options import ExportOptions
from lightning_modules.chroma_choice import CHROMA_SCALES
from tests.doors.calls import evaluated, predicted
from tests.runs.saved_runs import save_colorizer, save_ranker


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        "run": str(save_colorizer(folder / "colorizer", sd=False)),
        "ranker": str(save_ranker(folder / "ranker")),
    }


def test_what_is_no_ranker_is_one_sentence(runs, tmp_path):
    Image.fromarray(skimage.data.astronaut()[:40, :50]).save(tmp_path / "a.png")
    words = {"run": runs["run"], "input": tmp_path / "a.png", "output": tmp_path / "out", "device": "cpu"}
    for name, kind, message in (
        ("nobody", FileNotFoundError, "ranker=nobody: no such run folder or checkpoint; shipped models are:"),
        (
            runs["run"],
            ValueError,
            "is a run of ColorizeControlNet; give a run of experiment=vividness_ranker, or",
        ),
        (f"clip:{tmp_path}", FileNotFoundError, "no CLIP model at"),
    ):
        with pytest.raises(kind) as caught:
            predicted(**words, chroma="auto", ranker=name)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()


def test_the_default_ranker_is_the_shipped_one(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("runs.load.PRETRAINED", tmp_path)
    Image.fromarray(skimage.data.astronaut()[:40, :50]).save(tmp_path / "a.png")
    words = {"run": runs["run"], "input": tmp_path / "a.png", "output": tmp_path / "out", "device": "cpu"}
    with pytest.raises(FileNotFoundError, match="ranker=vividness_ranker: no such run folder or checkpoint"):
        predicted(**words, chroma="auto")
    export(ExportOptions(run=runs["ranker"], output=str(tmp_path / "vividness_ranker")))
    assert predicted(**words, chroma="auto") == 0


def test_predict_takes_the_scale_that_it_logs(runs, tmp_path, caplog):
    caplog.set_level("INFO")
    Image.fromarray(skimage.data.astronaut()[:40, :50]).save(tmp_path / "a.png")
    words = {"run": runs["run"], "input": tmp_path / "a.png", "short_px": 16, "device": "cpu"}
    auto = {"chroma": "auto", "ranker": runs["ranker"]}
    assert predicted(**words, **auto, output=tmp_path / "auto") == 0
    (line,) = [m for m in caplog.messages if m.startswith("chroma=auto: a.png x ")]
    scale = line.rpartition(" ")[2]
    assert float(scale) in CHROMA_SCALES
    assert predicted(**words, chroma=scale, output=tmp_path / "fixed") == 0
    found, fixed = (np.asarray(Image.open(tmp_path / name / "a.png")) for name in ("auto", "fixed"))
    assert np.array_equal(found, fixed)


def test_evaluate_reports_the_ranker(runs, tmp_path, caplog):
    caplog.set_level("INFO")
    folder = evaluated(**runs, split="val", limit=2, device="cpu", output=tmp_path, chroma="auto")
    found = json.loads((folder / "metrics.json").read_text())
    (method,) = found["methods"].values()
    assert (method["options"]["chroma"], method["options"]["ranker"]) == ("auto", runs["ranker"])
    drawn = [m for m in caplog.messages if m.startswith("chroma=auto: ") and m.count(" x ") == 2]
    assert len(drawn) == 2  # with and without captions
