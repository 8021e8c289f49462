"""key=value words of evaluate, predict and export."""

from dataclasses import dataclass

import pytest

from runs.evaluation import EvaluateOptions
from runs.exporting import ExportOptions
from runs.options import option, parse, size
from runs.prediction import PredictOptions

USAGE = "python door.py name=NAME"


@dataclass(frozen=True)
class Options:
    name: str = option("what it is called")
    count: int = option("how many", 3)
    share: float = option("how much", 0.5)
    limit: int | None = option("at most", None)
    folder: str | None = option("where", None)
    text: str = option("said of it", "")


def test_words_become_typed_values_and_dotted_keys_are_kept():
    words = [
        "name=a=b",
        "count=7",
        "share=1e-2",
        "limit=4",
        "folder=x y",
        "datamodule.root=DIR",
        "datamodule=photos",
    ]
    options, overrides = parse(Options, words, USAGE)
    assert options == Options(name="a=b", count=7, share=0.01, limit=4, folder="x y")
    assert overrides == ["datamodule.root=DIR", "datamodule=photos"]


def test_defaults_nothing_and_the_last_word():
    assert parse(Options, ["name=a", "text=", "limit=null"], USAGE)[0] == Options(name="a")
    assert parse(Options, ["name=a", "limit="], USAGE)[0].limit is None
    assert parse(Options, ["name=a", "count=1", "count=2"], USAGE)[0].count == 2


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["photo.jpg"], "'photo.jpg' is not of the form key=value; python door.py name=NAME"),
        (["name=a", "cuont=2"], "unknown option 'cuont'; did you mean 'count'?"),
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
        parse(Options, words, USAGE)
    assert str(caught.value) == text


@pytest.mark.parametrize("kind", [Options, PredictOptions, EvaluateOptions, ExportOptions])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_option_and_exits_with_0(kind, flag, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(kind, [flag], USAGE)
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(USAGE)
    assert all(f"\n  {name} " in shown for name in kind.__dataclass_fields__)


def test_sizes():
    assert size(None) is None
    assert size("512x768") == (512, 768)
    for wrong in ("512", "0x5", "x", "5x-1", "axb"):
        with pytest.raises(ValueError, match=f"size={wrong} is not HxW in pixels"):
            size(wrong)
