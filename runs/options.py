"""Options of the doors that take `key=value` words without Hydra's groups: evaluate, predict, export."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any, TypeVar, get_args, get_type_hints

from runs.choices import nearest

Options = TypeVar("Options")


def option(help: str, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field with its help text; without a default the option must be given."""
    return dataclasses.field(default=default, metadata={"help": help})


def parse(kind: type[Options], arguments: Sequence[str], usage: str) -> tuple[Options, list[str]]:
    """Options of a dataclass from `key=value` words, and the words with a dotted key, which override the run's config.

    `--help` prints the usage and every option, and exits.

    Raises:
        ValueError: a word without `=`, an unknown key, a value of another type, a missing option.
    """
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(_help(kind, usage))
        raise SystemExit(0)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints, values, overrides = get_type_hints(kind), {}, []
    for word in arguments:
        key, equals, text = word.partition("=")
        if not equals:
            raise ValueError(f"'{word}' is not of the form key=value; {usage}")
        if key in fields:
            if not text.strip() and fields[key].default != "" and hints[key] in (str, str | None):
                raise ValueError(f"{key}= is empty; give a value, or leave it out")
            values[key] = _convert(key, text, hints[key])
        elif "." in key or key == "datamodule":
            overrides.append(word)
        else:
            raise ValueError(f"unknown option '{key}'{nearest(key, fields)}")
    missing = [f.name for f in fields.values() if f.default is dataclasses.MISSING and f.name not in values]
    if missing:
        raise ValueError(f"{missing[0]}= is missing; {usage}")
    return kind(**values), overrides


def size(text: str | None) -> tuple[int, int] | None:
    """(H, W) of a text like 512x768, or None.

    Raises:
        ValueError: not two positive whole numbers.
    """
    if text is None:
        return None
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise ValueError(f"size={text} is not HxW in pixels, such as size=512x768")
    return int(height), int(width)


def _convert(key: str, text: str, hint: Any) -> Any:
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    if type(None) in get_args(hint) and text in ("", "null") and str not in kinds:
        return None
    try:
        return kinds[0](text)
    except ValueError:
        names = {int: "a whole number", float: "a number"}
        raise ValueError(f"{key}={text} is not {names.get(kinds[0], kinds[0].__name__)}") from None


def _help(kind: type, usage: str) -> str:
    # What must be given comes first, also where a class inherits options.
    fields = sorted(dataclasses.fields(kind), key=lambda f: f.default is not dataclasses.MISSING)
    width = max(len(f.name) for f in fields)
    lines = [f"  {f.name:<{width}}  {f.metadata['help']}{_default(f)}" for f in fields]
    return "\n".join(
        [
            usage,
            "",
            *lines,
            "",
            "Words with a dotted key, such as datamodule.root=DIR, change the run's config.",
            "",
        ]
    )


def _default(field: dataclasses.Field) -> str:
    return "" if field.default in (dataclasses.MISSING, None, "") else f" [{field.default}]"
