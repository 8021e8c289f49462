"""The words `key=value` after a door: first the door's own, then those of the method that its run names.

Nothing here imports torch, so that `--help` answers at once.
"""

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from lightning_modules.options import option, path
from runs.choices import nearest

Options = TypeVar("Options")
_RUN = "run folder, checkpoint file, exported folder, or a name in pretrained/"
_PROTOCOL = "protocol."
# Words of evaluate.py before protocols had keys.
_EARLIER_PROTOCOL = {
    "protocol": "protocol.protocol",
    "colorfulness": "protocol.colorfulness_variant",
    "colorfulness_difference": "protocol.colorfulness_difference",
    "fid_backbone": "protocol.fid_backbone",
    "weights_dir": "protocol.weights_dir",
}
_KINDS: dict[Any, tuple[Callable[[str], Any], str]] = {
    int: (int, "a whole number"),
    float: (float, "a number"),
    bool: ({"true": True, "false": False}.__getitem__, "true or false"),
}


# Of an `output=` that asks for one file, where all doors write a folder.
_FILES = "png jpg jpeg tif tiff webp bmp gif avif html json csv txt zip safetensors ckpt pt bin"


def folder(text: str) -> str:
    """A folder to write into.

    Raises:
        ValueError: it is or lies in a file, has the name of one, or nothing can be written there.
    """
    place = Path(path(text))
    there = next((p for p in (place, *place.absolute().parents) if p.exists()), place)
    if there.exists() and not there.is_dir():
        raise ValueError(f"output={text}: {there} is a file; give a folder for the results")
    if not place.exists() and place.suffix[1:].lower() in _FILES.split():
        raise ValueError(
            f"output={text} is the name of a file; give a folder for the results, such as output={place.with_suffix('')}"
        )
    if not os.access(there, os.W_OK):
        raise ValueError(f"output={text}: nothing can be written into {there}; give another folder")
    return str(place)


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Of predict.py."""

    run: str = option(_RUN, parse=path)
    output: str = option(
        "folder for the results: STEM.png, and NAME/STEM.png for further kinds", parse=folder
    )
    input: str | None = option(
        "a photo or a folder of photos, for all methods but those that generate", None, parse=path
    )
    format: str = option("png or tiff", "png")
    max_pixels: int = option("larger photos are refused before decoding", 64_000_000)
    device: str = option("auto, cpu, cuda ...", "auto")

    def __post_init__(self) -> None:
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels={self.max_pixels} refuses every photo; give at least 1")
        if self.format not in ("png", "tiff"):
            raise ValueError(f"format={self.format} is not png or tiff")


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """Of every door that measures; the data are those of the (first) run unless datamodule words say otherwise."""

    split: str = option("val or test", "test")
    limit: int | None = option("first so many images of the split; all if not given", None)
    device: str = option("auto, cpu, cuda ...", "auto")
    output: str | None = option(
        "folder of the report; a new one under outputs/ if not given", None, parse=folder
    )

    def __post_init__(self) -> None:
        if self.split not in ("val", "test"):
            raise ValueError(f"split={self.split} is not val or test")
        if self.limit is not None and self.limit < 1:
            raise ValueError(
                f"limit={self.limit} leaves no image to measure; give at least 1, or leave it out"
            )


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(MeasureOptions):
    """Of evaluate.py."""

    run: str = option(_RUN, parse=path)


@dataclass(frozen=True, kw_only=True)
class CompareOptions(MeasureOptions):
    """Of compare.py."""

    methods: str = option("'A=RUN|RUN; B=RUN@steps=5': | joins training seeds of one method, @ sets options")
    vary: str | None = option("a curve: OPTION=1,2,5 draws with each of these values", None)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Of export.py."""

    run: str = option(_RUN, parse=path)
    output: str = option("folder to write; it must not exist yet or be empty", parse=folder)
    dtype: str = option("float32, float16 or bfloat16 of the stored weights", "float32")


@dataclass(frozen=True)
class Words(Generic[Options]):
    """The words of a command line: the door's options, and those that others are asked about."""

    door: Options
    method: dict[str, str]  # key -> text, of keys that the door does not know
    overrides: list[str]  # datamodule=NAME and dotted keys, which change the run's config
    protocol: dict[str, str]  # KEY -> text of protocol.KEY=

    def refuse(self, *, method: bool = False, overrides: bool = True) -> "Words[Options]":
        """Itself. Raises a ValueError for words without effect: options of a method, changes of a config or protocol."""
        for key in self.method if method else ():
            raise ValueError(f"unknown option '{key}'{nearest(key, option_fields(type(self.door)))}")
        for word in [*self.overrides, *(f"{_PROTOCOL}{key}=" for key in self.protocol)] if overrides else ():
            raise ValueError(f"{word} has no effect here; --help lists the options")
        return self


def parse(kind: type[Options], arguments: Sequence[str], usage: str) -> Words[Options]:
    """A door's options from its dataclass; words with other keys are kept for `method_options`.

    `--help` prints the usage and every option, of a given run's method too, and exits.
    """
    words = [word for word in arguments if word not in ("-h", "--help")]
    if len(words) < len(arguments):
        sys.stdout.write(_help(kind, usage, words))
        raise SystemExit(0)
    fields = option_fields(kind)
    own: dict[str, str] = {}
    method: dict[str, str] = {}
    overrides: list[str] = []
    protocol: dict[str, str] = {}
    seen: dict[str, str] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise ValueError(f"'{word}' is not of the form key=value; {usage}")
        if key in seen:
            hint = "; several photos are a folder" if key == "input" else ""
            raise ValueError(f"{key}= is given twice, as {seen[key]} and {word}; give it once{hint}")
        seen[key] = word
        if issubclass(kind, MeasureOptions):
            key = _EARLIER_PROTOCOL.get(key, key)
        if key in fields:
            own[key] = text
        elif key.startswith(_PROTOCOL):
            protocol[key.removeprefix(_PROTOCOL)] = text
        elif "." in key or key == "datamodule":
            overrides.append(word)
        else:
            method[key] = text
    missing = [name for name, f in fields.items() if f.default is dataclasses.MISSING and name not in own]
    if missing:
        raise ValueError(f"{missing[0]}= is missing; {usage}")
    return Words(kind(**converted(kind, own)), method, overrides, protocol)


def method_options(method: type, texts: Mapping[str, str], door: type | None = None) -> Any:
    """An object of the `Options` of a module's class; the door's options are suggested too for a mistyped key."""
    kind: Any = method.Options  # type: ignore[attr-defined]
    known = option_fields(kind)
    for key in texts:
        if key not in known:
            near = nearest(key, [*known, *(option_fields(door) if door else ())])
            advice = near if near.startswith("; did you mean") else "; leave it out"
            raise ValueError(f"{method.__name__} takes no {key}={advice}")
    return kind(**converted(kind, texts))


def option_fields(kind: type) -> dict[str, dataclasses.Field]:
    """The fields that a user can set, by name: those made by `option`."""
    return {f.name: f for f in dataclasses.fields(kind) if "help" in f.metadata}


def converted(kind: type, texts: Mapping[str, str]) -> dict[str, Any]:
    """Values of a dataclass's fields from texts."""
    hints = get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    return {key: _value(key, text, hints[key], fields[key]) for key, text in texts.items()}


def _value(key: str, text: str, hint: Any, field: dataclasses.Field) -> Any:
    kinds = [k for k in get_args(hint) or (hint,) if k is not NoneType]
    own_parser = field.metadata.get("parse")
    if not text.strip() and field.default != "" and (str in kinds or own_parser):
        raise ValueError(f"{key}= is empty; give a value, or leave it out")
    if NoneType in get_args(hint) and text in ("", "null") and str not in kinds:
        return None
    if own_parser:
        return own_parser(text)
    if get_origin(hint) is Literal or str in kinds:
        return text
    if kinds[0] not in _KINDS:
        value = yaml.safe_load(text)
        return tuple(value) if isinstance(value, list) else value
    read, expected = _KINDS[kinds[0]]
    try:
        return read(text)
    except (ValueError, KeyError):
        raise ValueError(f"{key}={text} is not {expected}") from None


def _help(kind: type, usage: str, words: Sequence[str]) -> str:
    lines = [usage, "", *_described(kind)]
    for method in _named_methods(words):
        lines += ["", f"Options of {method.__name__}:", *_described(method.Options)]
    key = next((key for key in ("run", "methods") if key in option_fields(kind)), "")
    if key and not any(word.startswith(f"{key}=") for word in words):
        lines += ["", f"The method of a run has options of its own: {key}={key.upper()} --help lists them."]
    if issubclass(kind, MeasureOptions):
        lines += [
            "",
            "Words such as datamodule.root=DIR change the run's data, protocol.KEY= what is measured.",
        ]
    return "\n".join([*lines, ""])


def _named_methods(words: Sequence[str]) -> list[Any]:
    """The classes of the runs in run= and methods=, each once."""
    given = {key: text for key, _, text in (word.partition("=") for word in words) if text}
    runs = [path(given["run"])] if "run" in given else []
    if "methods" in given:
        from doors.compare import parse_methods

        runs += [run for plan in parse_methods(given["methods"], {}) for run in plan.runs]
    if not runs:
        return []
    from runs.load import module_class

    return list(dict.fromkeys(map(module_class, runs)))


def _described(kind: type) -> list[str]:
    # What must be given comes first, also where a class inherits options.
    fields = sorted(option_fields(kind).values(), key=lambda f: f.default is not dataclasses.MISSING)
    width = max((len(f.name) for f in fields), default=0)
    lines = []
    for f in fields:
        default = "" if f.default in (dataclasses.MISSING, None, "") else f" [{f.default}]"
        lines.append(f"  {f.name:<{width}}  {f.metadata['help']}{default}")
    return lines or ["  none"]
