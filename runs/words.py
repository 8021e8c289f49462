"""Words `key=value` of a command: values that are paths, which Hydra's grammar may not read, and words to paste."""

import os
import re
import shlex
from collections.abc import Iterable

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

# The last part of every config key whose text is a path, and of these what a run makes where it does not find it.
WRITTEN_KEYS = {"cache_dir", "folder", "text_cache_dir"}
PATH_KEYS = WRITTEN_KEYS | {
    "blip",
    "ckpt_path",
    "default_root_dir",
    "dir",
    "dirpath",
    "path",
    "resume",
    "root",
    "run_dir",
    "save_dir",
    "source",
    "start",
    "weights_dir",
}


def is_path(key: str) -> bool:
    """Whether the text at a dotted config key is a path."""
    return key.rpartition(".")[2].lstrip("+") in PATH_KEYS


def readable(words: Iterable[str]) -> list[str]:
    """The words as Hydra can read them: a path that its grammar refuses is put into quotes, its `~` is the home folder.

    Example:
        >>> readable(["resume=runs/run (1)", "seed=1"])
        ["resume='runs/run (1)'", 'seed=1']
    """
    return [_readable(word) for word in words]


def _readable(word: str) -> str:
    key, equals, text = word.partition("=")
    if not (equals and is_path(key)):
        return word
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return _quoted(key, os.path.expanduser(text))
    return word


def text_of(word: str) -> str:
    """The value of a word as text: what stands in quotes or, where Hydra reads a number or a list, all as it is typed."""
    change = OverridesParser.create().parse_override(_readable(word))
    value = None if change.is_sweep_override() else change.value()
    return value if isinstance(value, str) else word.partition("=")[2]


def _quoted(key: str, text: str) -> str:
    """The word whose value Hydra reads as this text: backslashes are doubled before a quote alone."""
    doubled = re.sub(r"(\\+)(?='|\Z)", r"\1\1", text)
    escaped = doubled.replace("'", r"\'")
    return f"{key}='{escaped}'"


def as_text(word: str) -> str:
    """What to type in a shell so that Hydra reads the value as text, such as `"run_dir='2030'"`."""
    key, _, text = word.partition("=")
    return for_shell(_quoted(key, text))


def for_shell(word: str) -> str:
    """A word as a shell needs it to be typed.

    Example:
        >>> print(for_shell("resume=runs/a"), for_shell("resume=runs/run (1)"))
        resume=runs/a 'resume=runs/run (1)'
    """
    return f'"{word}"' if "'" in word and not re.search(r'["$`\\!]', word) else shlex.quote(word)
