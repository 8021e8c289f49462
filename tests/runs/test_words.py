"""Paths of any name reach the config as they are, and what is printed to be pasted can be."""

import shlex
from pathlib import Path

import pytest

from runs.config import override
from runs.resume import resume_request
from runs.words import as_text, for_shell, readable, text_of

NAMES = [
    "run (1)",
    "\u00fcn\u00ef/\u65e5\u672c",
    "a=b",
    "[2024] trip",
    "it's",
    'q"q',
    "a{b}",
    "#1 & <2>; !`x`",
    "b\\",
    "b\\'c",
    "50%",
    "a::b",
    "007",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_taken_as_it_is_typed(name: str) -> None:
    (word,) = readable([f"ckpt_path={name}"])
    config = {"ckpt_path": None, "resume": None, "trainer": {}, "module": None}
    assert override(config, [word])["ckpt_path"] == name
    assert override(config, [f"ckpt_path={name}"])["ckpt_path"] == name
    assert resume_request(readable([f"resume={name}"])) == Path(name)


@pytest.mark.parametrize("name", [*NAMES, "a,b", "1e5", "null", "[1]", "$HOME"])
def test_what_is_printed_can_be_pasted(name: str) -> None:
    (word,) = shlex.split(as_text(f"run_dir={name}"))
    assert text_of(word) == name
    (word,) = shlex.split(for_shell(f"resume={name}"))
    assert word == f"resume={name}"


def test_resume_takes_commas_numbers_quotes_and_the_home_folder() -> None:
    assert resume_request(["resume=runs/a,b"]) == Path("runs/a,b")
    assert resume_request(["resume=1e5"]) == Path("1e5")
    assert resume_request(["resume='runs/run (1)'"]) == Path("runs/run (1)")
    assert resume_request(["resume=~/run"]) == Path.home() / "run"
    assert resume_request(["resume=a", "resume=auto"]) is None


def test_only_paths_are_taken_where_the_grammar_fails() -> None:
    words = ["seed=(1)", "module.path.schedule=(1)", "autoencoder", "datamodule.root=photos"]
    assert readable(words) == words
