"""compare.py: methods beside one another, trainings joined, curves, and what cannot be compared."""

import json
import statistics

import pytest
import torch

from doors.compare import Plan, parse_methods, vary
from doors.measure import Row
from tasks.colorization import Colorization
from tests.doors import calls
from tests.doors.runs import save_runs
from tests.runs.saved_runs import save_autoencoder, save_ranker


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return save_runs(tmp_path_factory.mktemp("runs"))


def compared(tmp_path, methods, **settings):
    words = {"methods": methods, "output": tmp_path / "out", "split": "val", "limit": 5, "device": "cpu"}
    folder = calls.compared(**(words | settings))
    return json.loads((folder / "metrics.json").read_text()), folder


def test_methods_are_names_of_runs_with_options():
    text = "A = x | y ; B=z@steps=5,chroma=0.6;"
    shared = {"seed": "1"}
    assert parse_methods(text, shared) == [
        Plan("A", ["x", "y"], shared),
        Plan("B", ["z"], {"seed": "1", "steps": "5", "chroma": "0.6"}),
    ]
    assert vary(Plan("A", ["x"], {"seed": "1"}), "steps=1,5") == [
        Plan("A, steps=1", ["x"], {"seed": "1", "steps": "1"}, "A", 1.0, further_rows=True),
        Plan("A, steps=5", ["x"], {"seed": "1", "steps": "5"}, "A", 5.0, further_rows=False),
    ]


def test_several_trainings_are_one_row_with_their_spread(runs, tmp_path, capsys):
    found, folder = compared(tmp_path, f"Control={runs['controlnet']}; Walk={runs['walk']}|{runs['walk_b']}")
    rows = found["results"]
    assert [name for name in rows if "," not in name] == ["Control", "Walk", "grey", "mean colour"]
    alone = [compared(tmp_path / n, f"W={runs[n]}", seed=0)[0]["results"]["W"] for n in ("walk", "walk_b")]
    psnr, means = rows["Walk"]["psnr"], [values["psnr"]["mean"] for values in alone]
    assert psnr["runs"] == pytest.approx(means)
    assert psnr["mean"] == pytest.approx(statistics.fmean(means))
    assert psnr["spread"] == pytest.approx(statistics.stdev(means))
    assert psnr["count"] == 5
    assert rows["Walk"]["colorfulness_difference"]["std"] is None  # of the whole set
    paired = found["differences"]["Walk - Control"]["psnr"]
    assert paired["mean"] == pytest.approx(psnr["mean"] - rows["Control"]["psnr"]["mean"])
    low, high = paired["interval"]
    assert low <= paired["mean"] <= high
    assert found["methods"]["Walk"]["runs"] == [runs["walk"], runs["walk_b"]]
    assert found["costs"]["Control"]["evaluations"] == 4  # two steps with guidance
    assert found["costs"]["Walk"]["evaluations"] == 3
    page = (folder / "index.html").read_text()
    assert page.count("<img ") == 5 * (len(rows) + 1)  # and the truth
    assert "://" not in page
    assert "Walk" in capsys.readouterr().out


def test_a_metric_that_one_training_lacks_is_left_out():
    image = torch.rand(2, 3, 16, 16)
    batch = {"image": image, "index": torch.arange(2)}
    row = Row("W")
    for number in (0, 1):
        row.add(number, Colorization(), {"image": image * 0.9}, batch, [])
    del row.scores[1]._metrics["psnr"]
    assert "ssim" in row.figures()
    assert "psnr" not in row.figures()


def test_a_curve_has_a_row_for_each_value(runs, tmp_path):
    found, folder = compared(tmp_path, f"Walk={runs['walk']}", vary="steps=1,3", limit=3)
    own = compared(tmp_path / "own", f"Walk={runs['walk']}@steps=3", limit=3)[0]["results"]["Walk"]
    assert found["results"]["Walk, steps=3"] == own
    assert found["results"]["Walk, steps=1"] != own
    beside = ["Walk, steps=1, caption as prompt", "Walk, steps=1, autoencoder's ceiling"]
    assert [name for name in found["results"] if name.count(",") > 1] == beside  # once for the whole curve
    assert [found["costs"][f"Walk, steps={n}"]["evaluations"] for n in (1, 3)] == [1, 3]
    page = (folder / "index.html").read_text()
    assert page.count("<svg ") == len(own)
    assert page.count("<polyline ") == len(own)


@pytest.mark.parametrize(
    ("methods", "settings", "text"),
    [
        ("{walk}", {}, "which is not of the form NAME=RUN or NAME=RUN|RUN"),
        ("A=", {}, "which is not of the form NAME=RUN"),
        (" ; ", {}, "methods= names no method; give NAME=RUN"),
        ("A={walk}; A={vivid}", {}, "gives a name or a run twice"),
        ("A={walk}|{walk}", {}, "gives a name or a run twice"),
        ("A={walk}@steps", {}, "options after @ are KEY=VALUE,KEY=VALUE"),
        ("A={walk}@steps=1|{walk_b}", {}, "joins runs of 'A' that draw with unlike options"),
        ("A={walk}|{vivid}", {}, "joins runs of 'A' that do not differ in the seed of their training alone"),
        ("A={walk}|{controlnet}", {}, "joins runs of 'A' that do not differ in the seed of their training alone"),
        ("A={walk}@stpes=1", {}, "DiffusingColors takes no stpes=; did you mean 'steps'?"),
        ("A={walk}@steps=0", {}, "steps=0 is not a whole number of at least 1"),
        ("A={walk}", {"vary": "steps"}, "vary=steps is not of the form OPTION=1,2,5"),
        ("A={walk}", {"vary": "steps=a,b"}, "vary=steps=a,b is not of the form OPTION=1,2,5"),
        ("A={walk}", {"vary": "stpes=1,2"}, "takes no stpes="),
        ("A={walk}", {"vary": "steps=1,2,1"}, "vary=steps=1,2,1 gives a value twice"),
        ("A={walk}@steps=5", {"vary": "steps=1,2"}, "sets steps, and so does steps=5; leave one of them out"),
        ("A={walk}; B={autoencoder}", {}, "are measured as different tasks; compare methods of one task"),
        ("A={ranker}", {}, "has no task, so there is nothing to measure"),
        ("A=nobody", {}, "run=nobody: no such run folder or checkpoint"),
        ("A={walk}", {"limit": 0}, "limit=0 leaves no image to measure"),
        ("A={walk}", {"split": "train"}, "split=train is not val or test"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_one_sentence(runs, tmp_path, methods, settings, text):
    places = dict(runs)
    if "{autoencoder}" in methods:
        places["autoencoder"] = str(save_autoencoder(tmp_path))
    if "{ranker}" in methods:
        places["ranker"] = str(save_ranker(tmp_path))
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        compared(tmp_path, methods.format(**places), **settings)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_guidance_without_anything_to_strengthen_is_refused(runs, tmp_path):
    words = {"run": runs["walk"], "output": tmp_path / "out", "split": "val", "limit": 2, "device": "cpu"}
    with pytest.raises(ValueError, match="guidance=3 has no effect here"):
        calls.evaluated("datamodule.caption=none", **words, guidance=3)
    assert not (tmp_path / "out").exists()
    calls.evaluated("datamodule.caption=none", **words, guidance=3, prompt="red")
