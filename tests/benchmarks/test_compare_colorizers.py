"""The comparison of tiny colorizers from its options to its page, and what it refuses before it draws."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.colorizer_alike import check_alike
from benchmarks.colorizer_figures import spread
from benchmarks.colorizer_methods import Entrant, load_methods, parse_methods
from benchmarks.colorizer_page import PhotoColumn, page_text
from benchmarks.colorizer_photos import Photos, photos_datamodule, plain_draw, read_photos
from benchmarks.colorizer_sources import Settings, Source
from benchmarks.colorizer_table import Row
from benchmarks.compare_colorizers import CompareOptions, compare
from lightning_modules.colorizer import CHROMA_SCALES
from runs.cli import USER_ERRORS
from runs.load import Run
from runs.messages import sentence
from tests.benchmarks.small_runs import photos
from tests.runs.saved_runs import datamodule, save_ranker


class Page(HTMLParser):
    """Checks that tags close in order, and keeps pictures and texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[dict[str, str]] = []
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag == "img":
            self.pictures.append(dict(attrs))
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def options(runs: dict[str, str], output: Path, **changes) -> CompareOptions:
    methods = (
        f"Control<Net>={runs['controlnet']}; Walk={runs['walk']}|{runs['walk_b']}; "
        f"Noisy={runs['noisy']}|{runs['noisy_b']}; Short={runs['walk']}@steps=1"
    )
    plain = CompareOptions(methods=methods, output=str(output), seeds="0,5", limit=3, rounds=1, device="cpu")
    return replace(plain, **changes)


def test_the_comparison_has_table_report_and_page(runs, tmp_path, capsys):
    page = compare(options(runs, tmp_path), ["datamodule=builtin_photos"])
    report = json.loads((tmp_path / "comparison.json").read_text())
    rows = report["rows"]
    names = [
        "Control<Net>",
        "Walk",
        "Noisy",
        "Short",
        "grey",
        "mean colour",
        "autoencoder's ceiling",
        "truth",
    ]
    assert list(rows) == names
    assert report["num_photos"] == 3

    figures = {name: row["figures"] for name, row in rows.items()}
    draws = {name: [(d["run"], d["seed"]) for d in row["draws"]] for name, row in rows.items()}
    assert draws["Walk"] == [(runs["walk"], 0), (runs["walk_b"], 0)]  # no noise: one draw of each run
    assert draws["Control<Net>"] == [(runs["controlnet"], 0), (runs["controlnet"], 5)]
    assert [rows[name]["depends_on_seed"] for name in names[:5]] == [True, False, True, False, False]
    values = [draw["delta_e2000"] for draw in rows["Walk"]["draws"]]
    assert figures["Walk"]["delta_e2000"] == {
        "mean": pytest.approx(sum(values) / 2),
        "std": pytest.approx(abs(values[0] - values[1]) / 2**0.5),
        "num": 2,
    }
    # Seeds are averaged within a run, and the spread is that of the two runs.
    noisy = np.array([draw["delta_e2000"] for draw in rows["Noisy"]["draws"]]).reshape(2, 2)
    assert figures["Noisy"]["delta_e2000"] == {
        "mean": pytest.approx(noisy.mean()),
        "std": pytest.approx(noisy.mean(1).std(ddof=1)),
        "num": 2,
    }
    assert rows["Noisy"]["sampling_std"]["delta_e2000"] == pytest.approx(noisy.std(1, ddof=1).mean())
    assert figures["Noisy"]["sampling_spread"]["mean"] == rows["Noisy"]["sampling_std"]["delta_e2000"] > 0
    assert figures["Control<Net>"]["delta_e2000"]["std"] is None  # one run, whatever its seeds
    assert figures["Control<Net>"]["sampling_spread"]["mean"] > 0
    assert "sampling_spread" not in figures["Walk"]
    assert [figures[name]["num_runs"]["mean"] for name in names[:4]] == [1, 2, 2, 1]
    assert figures["Control<Net>"]["evaluations_per_image"]["mean"] == 4  # 2 steps under guidance
    assert figures["Walk"]["evaluations_per_image"]["mean"] == 3
    assert figures["Short"]["evaluations_per_image"]["mean"] == 1
    assert rows["Short"]["draws"][0]["run"] == f"{runs['walk']}@steps=1"
    assert figures["Control<Net>"]["diversity"]["mean"] > 0
    assert "diversity" not in figures["Walk"]
    assert "training_images" not in figures["Walk"]  # these runs logged nothing
    assert figures["truth"]["delta_e2000"]["mean"] == 0
    assert figures["grey"]["colorfulness"]["mean"] == pytest.approx(0, abs=1.5)

    parsed = Page(page.read_text(encoding="utf-8"))
    # Grey, two seeds, one walk of the first run, two seeds, the short walk, mean colour, truth.
    assert len(parsed.pictures) == 3 * (1 + 2 + 1 + 2 + 1 + 1 + 1)
    assert page.stat().st_size > 1000
    for text in ((tmp_path / "comparison.md").read_text(encoding="utf-8"), capsys.readouterr().out):
        assert "Control<Net>" in text
        assert "autoencoder's" in text


def test_the_page_is_whole_and_says_what_each_picture_is():
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    columns = [
        PhotoColumn("grey", "", images, [9.04, 8.0]),
        PhotoColumn("a<b", "seed 0", images, [1.26, 2.0]),
        PhotoColumn("a<b", "seed 7", images, [3.0, 4.0]),
    ]
    row = Row("a<b", {"delta_e2000": spread([1.0, 2.0])}, ["run"])
    text = page_text("2 photos & more.", [row], columns, ["x.png", "y&z.png"])
    page = Page(text)
    assert [p["alt"] for p in page.pictures[:3]] == [
        "x.png, grey",
        "x.png, a<b, seed 0",
        "x.png, a<b, seed 7",
    ]
    assert page.pictures[-1]["alt"] == "y&z.png, a<b, seed 7"
    assert len(page.pictures) == 6
    assert all(p["src"].startswith("data:image/png;base64,") for p in page.pictures)
    assert page.pictures[0]["width"] == page.pictures[0]["height"] == "128"
    tags = [tag for tag, _ in page.seen]
    assert "script" not in tags
    assert "link" not in tags
    assert ("html", {"lang": "en"}) in page.seen
    assert re.findall(r"https?://", text) == []
    for said in (
        "2 photos &amp; more.",
        "a&lt;b",
        'colspan="2"',
        "seed 7",
        "9.0",
        "1.3",
        "1.50 ± 0.71",
        "<title>",
    ):
        assert said in text
    assert "image-rendering: pixelated" in text
    assert "prefers-color-scheme: dark" in text


def test_methods_are_names_with_one_or_several_runs():
    assert parse_methods(" A b=x ; C = y|z/u=v;") == {
        "A b": [Source("x", "x")],
        "C": [Source("y", "y"), Source("z/u=v", "z/u=v")],
    }


def test_a_run_may_have_settings_of_its_own():
    found = parse_methods("A=me@home/x@steps=1, chroma=0.6; B=x@guidance=2,chroma=auto; C=me@home/x")
    assert found["A"] == [Source("me@home/x@steps=1, chroma=0.6", "me@home/x", Settings(steps=1, chroma=0.6))]
    assert found["B"][0].settings == Settings(guidance=2.0, chroma="auto")
    assert found["C"] == [Source("me@home/x", "me@home/x")]


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (
            "x@step=1",
            "where 'step=1' is not steps=N, guidance=SCALE, chroma=SCALE or chroma=auto; write RUN@steps=1,chroma=0.6",
        ),
        ("x@steps", "where 'steps' is not steps=N, guidance=SCALE, chroma=SCALE or chroma=auto; write RUN@"),
        ("x@steps=1.5", "where steps=1.5 is not a whole number of at least 1"),
        ("x@steps=0", "where steps=0 is not a whole number of at least 1"),
        ("x@guidance=nan", "where guidance=nan is not a number from 0; 1 is off"),
        (
            "x@chroma=loud",
            "where chroma=loud is neither a number from 0 nor auto; 0 is grey, 1 as drawn, auto what the ranker picks",
        ),
        ("x@steps=1,steps=2", "which gives steps twice; give it once"),
    ],
)
def test_bad_settings_of_a_run_are_named(run, message):
    with pytest.raises(ValueError) as caught:
        parse_methods(f"A={run}")
    assert str(caught.value).startswith(f"methods= has '{run}', {message}")


def test_settings_reach_the_drawing_and_a_run_is_loaded_once(runs, tmp_path):
    ranker = save_ranker(tmp_path / "ranker")
    text = f"A={runs['walk']}; B={runs['walk']}@steps=1,chroma=0.6; C={runs['walk']}@chroma=auto"
    found = load_methods(parse_methods(text), torch.device("cpu"), str(ranker))
    plain, calm, auto = (found[name][0] for name in "ABC")
    assert plain.run is calm.run is auto.run
    expected = plain_draw(plain.run.module, num_steps=1, chroma_scale=0.6)(photos(), 0)
    assert torch.equal(calm.draw(photos(), 0), expected)
    assert not torch.equal(plain.draw(photos(), 0), expected)
    scaled = [plain_draw(plain.run.module, chroma_scale=scale)(photos(), 0) for scale in CHROMA_SCALES]
    for number, image in enumerate(auto.draw(photos(), 0)):
        assert any(torch.allclose(image, candidates[number], atol=1e-5) for candidates in scaled)


def test_a_ranker_that_nothing_asks_is_named(runs):
    with pytest.raises(ValueError) as caught:
        load_methods(parse_methods(f"A={runs['walk']}"), torch.device("cpu"), "x")
    assert str(caught.value) == (
        "ranker=x has no effect, as no run of methods= draws with chroma=auto; write RUN@chroma=auto, or leave ranker out"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "methods= names no method; give NAME=RUN|RUN; NAME=RUN"),
        (
            "A",
            "methods= has 'A', which is not of the form NAME=RUN or NAME=RUN|RUN; put a semicolon between methods",
        ),
        ("A=x|", "methods= has 'A=x|', which is not of the form NAME=RUN or NAME=RUN|RUN"),
        ("=x", "methods= has '=x', which is not of the form NAME=RUN or NAME=RUN|RUN"),
        ("A=x; A=y", "methods= has the name 'A', which stands there twice; choose another name"),
        ("grey=x", "methods= has the name 'grey', which is the name of a baseline; choose another name"),
        ("A=x|x", "methods= names a run of 'A' twice: x|x; runs must differ"),
    ],
)
def test_a_bad_list_of_methods_is_named(text, message):
    with pytest.raises(ValueError) as caught:
        parse_methods(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "overrides", "message"),
    [
        ({"methods": "A=nowhere"}, [], "run=nowhere: no such run folder or checkpoint; shipped models are:"),
        ({"limit": 0}, [], "limit=0 leaves no photo to measure; give at least 1, or leave it out"),
        ({"split": "all"}, [], "split=all is not train, val or test"),
        ({"seeds": "0;1"}, [], "seeds=0;1 is not a list of whole numbers, such as seeds=0,1,2"),
        ({"seeds": "²"}, [], "seeds=² is not a list of whole numbers"),
        ({"rounds": 0}, [], "rounds=0 times nothing; give at least 1"),
        ({"captions": "yes"}, [], "captions=yes is not true or false"),
        (
            {"captions": "true"},
            ["datamodule=builtin_photos", "datamodule.caption=none"],
            "no photo has a caption",
        ),
        (
            {},
            ["datamodule.size_px=64"],
            "the photos would have datamodule.size_px=64, but these runs were trained at",
        ),
    ],
)
def test_bad_options_end_in_one_sentence_before_any_drawing(runs, tmp_path, changes, overrides, message):
    with pytest.raises(USER_ERRORS) as caught:
        compare(options(runs, tmp_path / "out", **({"methods": f"A={runs['walk']}"} | changes)), overrides)
    assert message in sentence(caught.value, overrides)
    assert not (tmp_path / "out").exists()


def test_runs_of_other_settings_are_not_joined(runs, tmp_path):
    methods = f"A={runs['walk']}; B={runs['walk_b']}|{runs['walk_vivid']}"
    with pytest.raises(ValueError) as caught:
        compare(options(runs, tmp_path / "out", methods=methods), [])
    assert str(caught.value) == (
        "methods= joins runs of 'B' that differ in module.chroma_scale (not set and 2.0); give runs of other settings a "
        "name of their own"
    )
    assert not (tmp_path / "out").exists()


def trained(
    folder: Path, num_steps: int, settings: Settings | None = None, *, seed: int = 0, root: str = "photos"
) -> Entrant:
    """A run of so many steps of 4 photos; what it draws is never asked."""
    data = {"batch_size": 4, "root": root, "seed": seed, "num_workers": seed}
    config = {"seed": seed, "module": {"norm": "l2"}, "datamodule": data, "trainer": {"precision": "32-true"}}
    run = Run(module=None, config=config, source=folder, num_steps=num_steps)
    return Entrant(Source(str(folder), str(folder), settings or Settings()), run, plain_draw(None))


def test_runs_of_other_training_or_drawing_are_not_joined(tmp_path):
    one, same, longer = (
        trained(tmp_path / str(seed), steps, seed=seed) for seed, steps in enumerate((10, 10, 20))
    )
    check_alike({"A": [one, same], "B": [longer]})
    with pytest.raises(ValueError) as caught:
        check_alike({"A": [one, same, longer]})
    assert str(caught.value) == (
        "methods= joins runs of 'A' that were trained on 40 and 80 photos; join runs of equal training, or give them names "
        "of their own"
    )
    with pytest.raises(ValueError, match=r"differ in datamodule.root \(photos and others\); give runs"):
        check_alike({"A": [one, trained(tmp_path / "e", 10, seed=7, root="others")]})
    with pytest.raises(ValueError, match=r"'A' of which two have the same seed \(0, 1, 0\)"):
        check_alike({"A": [one, same, trained(tmp_path / "f", 10)]})
    with pytest.raises(ValueError) as caught:
        check_alike({"A": [one, trained(tmp_path / "d", 10, Settings(steps=1, chroma="auto"))]})
    assert str(caught.value) == (
        "methods= joins runs of 'A' that draw with no settings and with steps=1,chroma=auto; give runs of other settings a "
        "name of their own"
    )


def test_runs_of_another_size_are_named():
    config = {"seed": 0, "module": {}, "datamodule": datamodule()}
    with pytest.raises(ValueError) as caught:
        photos_datamodule(config, [], {"a": 32, "b": 64, "c": 128})
    assert str(caught.value) == (
        "the photos would have datamodule.size_px=32, but these runs were trained at another size: b on 64, c on 128; "
        "compare runs of one size"
    )


def test_photos_are_spread_over_the_split():
    from runs.build import build

    photos: Photos = read_photos(build(datamodule(), "datamodule"), "val", limit=4)
    everything = read_photos(build(datamodule(), "datamodule"), "val")
    assert len(photos) == 4
    assert photos.ids == [k * len(everything) // 4 for k in range(4)]
    assert torch.equal(photos.image, everything.image[photos.ids])
    assert len(set(photos.names)) == 4
