"""key=value words of evaluate, predict and export."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from doors.options import (
    CompareOptions,
    EvaluateOptions,
    ExportOptions,
    PredictOptions,
    converted,
    method_options,
    parse,
)
from lightning_modules.color_options import ColorizationOptions
from lightning_modules.options import option
from tests.runs.saved_runs import save_colorizer

ROOT = Path(__file__).parents[2]
USAGE = "python door.py name=NAME"


@dataclass(frozen=True)
class Options:
    name: str = option("what it is called")
    count: int = option("how many", 3)
    share: float = option("how much", 0.5)
    limit: int | None = option("at most", None)
    folder: str | None = option("where", None)
    text: str = option("said of it", "")


class Method:
    Options = ColorizationOptions


def test_words_become_typed_values_and_other_words_are_kept():
    words = ["name=a=b", "count=7", "share=1e-2", "limit=4", "folder=x y"]
    others = ["datamodule.root=DIR", "datamodule=photos", "steps=5", "protocol.crop=center"]
    found = parse(Options, [*words, *others], USAGE)
    assert found.door == Options(name="a=b", count=7, share=0.01, limit=4, folder="x y")
    assert found.overrides == ["datamodule.root=DIR", "datamodule=photos"]
    assert (found.method, found.protocol) == ({"steps": "5"}, {"crop": "center"})


def test_defaults_and_nothing():
    assert parse(Options, ["name=a", "text=", "limit=null"], USAGE).door == Options(name="a")
    assert parse(Options, ["name=a", "limit="], USAGE).door.limit is None


@pytest.mark.parametrize("words", [("count=1", "count=2"), ("steps=1", "steps=1"), ("a.b=1", "a.b=2")])
def test_a_word_given_twice_is_refused(words):
    with pytest.raises(ValueError, match=f"= is given twice, as {words[0]} and {words[1]}; give it once$"):
        parse(Options, ["name=a", *words], USAGE)


def test_a_method_has_its_own_words():
    found = method_options(Method, {"steps": "5", "guidance": "null", "chroma": "0.6", "prompt": ""})
    assert found == ColorizationOptions(steps=5, chroma=0.6)
    assert method_options(Method, {"chroma": "auto"}).chroma == "auto"


@pytest.mark.parametrize(
    ("texts", "text"),
    [
        ({"stpes": "5"}, "Method takes no stpes=; did you mean 'steps'?"),
        ({"formt": "x"}, "Method takes no formt=; did you mean 'format'?"),
        ({"size": "5x5"}, "Method takes no size=; leave it out"),
        ({"hints": "1,1,#ffffff"}, "Method takes no hints=; leave it out"),
        ({"ranker_network": "x"}, "Method takes no ranker_network=; leave it out"),
        ({"steps": "many"}, "steps=many is not a whole number"),
        ({"steps": "0"}, "steps=0 is not a whole number of at least 1"),
        ({"chroma": ""}, "chroma= is empty; give a value, or leave it out"),
        ({"chroma": "half"}, "chroma=half is neither a number from 0 nor auto"),
    ],
)
def test_words_that_the_method_refuses(texts, text):
    with pytest.raises(ValueError) as caught:
        method_options(Method, texts, PredictOptions)
    assert str(caught.value).startswith(text)


def test_protocol_values_are_of_their_fields_types():
    @dataclass(frozen=True)
    class Protocol:
        crop: Literal["center", "resize"] = "center"
        pooled: bool = False
        spacing: tuple[float, float] | None = None

    found = converted(Protocol, {"crop": "resize", "pooled": "true", "spacing": "[0.5, 1]"})
    assert found == {"crop": "resize", "pooled": True, "spacing": (0.5, 1)}
    with pytest.raises(ValueError, match="pooled=yes is not true or false"):
        converted(Protocol, {"pooled": "yes"})


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["photo.jpg"], "'photo.jpg' is not of the form key=value; python door.py name=NAME"),
        (["name=a", "cuont=2"], "unknown option 'cuont'; did you mean 'count'?"),
        (
            ["name=a", "datamodule.root=x"],
            "datamodule.root=x has no effect here; --help lists the options",
        ),
        (
            ["name=a", "protocol.x=x"],
            "protocol.x= has no effect here; --help lists the options",
        ),
        (["name=a", "xyz=2"], "unknown option 'xyz'; choices: count, folder, limit, name, share, text"),
        (["name=a", "count=2.5"], "count=2.5 is not a whole number"),
        (["name=a", "limit=many"], "limit=many is not a whole number"),
        (["name=a", "share=half"], "share=half is not a number"),
        (["name=a", "count="], "count= is not a whole number"),
        (["name="], "name= is empty; give a value, or leave it out"),
        (["name=a", "folder= "], "folder= is empty; give a value, or leave it out"),
        (["count=2"], "name= is missing; python door.py name=NAME"),
    ],
)
def test_errors_say_what_to_do(words, text):
    with pytest.raises(ValueError) as caught:
        parse(Options, words, USAGE).refuse(method=True)
    assert str(caught.value) == text


@pytest.mark.parametrize("kind", [Options, PredictOptions, EvaluateOptions, CompareOptions, ExportOptions])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_option_and_exits_with_0(kind, flag, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(kind, [flag], USAGE)
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(USAGE)
    assert all(f"\n  {name} " in shown for name in kind.__dataclass_fields__)


def test_help_of_a_run_lists_its_methods_options(tmp_path, capsys):
    run_dir = save_colorizer(tmp_path, sd=False)
    with pytest.raises(SystemExit):
        parse(PredictOptions, ["--help", f"run={run_dir}"], USAGE)
    shown = capsys.readouterr().out
    assert "Options of ColorizeControlNet:" in shown
    assert all(f"\n  {name} " in shown for name in ("output", "steps", "chroma", "mask", "num_samples"))
    assert "ranker_network" not in shown


def test_help_of_compared_methods_lists_their_options_once(tmp_path, capsys):
    run_dir = save_colorizer(tmp_path, sd=False)
    with pytest.raises(SystemExit):
        parse(CompareOptions, [f"methods=A={run_dir}; B={run_dir}@steps=2", "--help"], USAGE)
    shown = capsys.readouterr().out
    assert shown.count("Options of ColorizeControlNet:") == 1
    assert "\n  chroma " in shown


@pytest.mark.parametrize("program", ["predict", "evaluate", "compare", "export"])
def test_help_imports_no_torch(program):
    code = f"import sys, {program}; sys.argv = ['{program}.py', '--help']\ntry:\n  {program}.main()\nexcept SystemExit: sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
