"""Checks of a composed config: keys, types and targets, the cheap ones first.

What needs a class imports it: seconds, which a training would spend anyway.
"""

import functools
import inspect
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from runs.build import OWN_ROOMS, check_plain, check_targets, located, nodes, values
from runs.choices import nearest, train_keys
from runs.limits import check_limits
from runs.words import is_path

_HYDRA_KEYS = {"_target_", "_partial_"}
_SCALARS: dict[str, Any] = {
    "experiment_name": str,
    "run_dir": str,
    "resume": str | None,
    "ckpt_path": str | None,
    "seed": int,
    "compile": bool,
}


class NotTextError(ValueError):
    """A number or a list stands where text is expected; `key` is its place."""

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message)
        self.key = key


def check_config(config: dict[str, Any]) -> None:
    """Raises a ValueError for unknown keys, values of a wrong type and targets that are not on the allow-list."""
    known = train_keys()
    for key in config:
        if key not in known:
            raise ValueError(f"unknown key '{key}'{nearest(key, known)}")
    check_plain(config, "")
    for value, path in values(config, ""):
        if isinstance(value, str) and not value.strip() and is_path(path):
            raise ValueError(
                f"{path} is empty, perhaps from a shell variable that is not set; give a path or null"
            )
    for key, annotation in _SCALARS.items():
        if key in config:
            _check_value(key, config[key], annotation, own=True)
    check_targets(config, "")
    for node, path in nodes(config, ""):
        if "_target_" in node:
            _check_arguments(node, path)
    check_limits(config)


def accepts(config: Any, path: str) -> bool:
    """Whether the class at the parent of `path` takes a key that the config leaves out."""
    parent, _, name = path.rpartition(".")
    node = next((node for node, where in nodes(config, "") if where == parent), {})
    found = located(str(node.get("_target_")))
    return found is not None and name in arguments(found)[0]


@functools.cache
def arguments(called: Any) -> tuple[dict[str, Any], bool]:
    """Arguments of a class or function with their annotations, and whether it also takes names that are unknown here.

    What a constructor of ours takes as `**kwargs` goes to the next class that has one; another package's may go anywhere.
    """
    owners = (
        [c for c in called.__mro__[:-1] if "__init__" in vars(c)] if isinstance(called, type) else [called]
    )
    found: dict[str, Any] = {}
    for owner in owners:
        function = vars(owner)["__init__"] if isinstance(owner, type) else owner
        parameters = inspect.signature(function).parameters.values()
        try:
            hints = get_type_hints(function)
        except (NameError, TypeError):  # names that exist for the type checker alone
            hints = {}
        named = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        found = {name: hints.get(name, Any) for name in named if name not in ("self", "cls")} | found
        if all(p.kind != p.VAR_KEYWORD for p in parameters):
            return found, False
        if not owner.__module__.startswith(OWN_ROOMS):
            return found, True
    return found, False


def _check_arguments(node: dict[str, Any], path: str) -> None:
    target = node["_target_"]
    annotations, is_open = arguments(located(target))
    for key in node.keys() - _HYDRA_KEYS:
        if key in annotations:
            _check_value(f"{path}.{key}", node[key], annotations[key], target.startswith(OWN_ROOMS))
        elif not is_open:
            name = target.rpartition(".")[2]
            raise ValueError(
                f"unknown key '{path}.{key}': {name} takes no '{key}'{nearest(key, annotations)}"
            )


def _check_value(path: str, value: Any, annotation: Any, own: bool) -> None:
    kinds = _kinds(annotation)
    if "any" in kinds or _fits(value, kinds, own):
        return
    expected = " or ".join(sorted(k for k in kinds if k != "container" or own))
    given = "null" if value is None else repr(value)
    if "str" in kinds and value is not None:
        raise NotTextError(f"{path} is {given}, expected {expected}", path)
    hint = f"; write {int(value)}" if isinstance(value, float) and value == int(value) else ""
    raise ValueError(f"{path} is {given}, expected {expected}{hint}")


def _kinds(annotation: Any) -> set[str]:
    """What an annotation takes: int, float, bool, str, null, container; "any" where unknown."""
    if get_origin(annotation) in (Union, UnionType):
        return set().union(*map(_kinds, get_args(annotation)))
    if annotation in (None, NoneType):
        return {"null"}
    if annotation in (int, float, bool, str):
        return {annotation.__name__}
    kind = get_origin(annotation) or annotation
    is_container = isinstance(kind, type) and kind.__module__ in ("builtins", "collections.abc")
    return {"container"} if is_container and hasattr(kind, "__iter__") else {"any"}


def _fits(value: Any, kinds: set[str], own: bool) -> bool:
    match value:
        case None:
            return not own or "null" in kinds
        case bool():
            return "bool" in kinds
        case int():
            return bool(kinds & {"int", "float"})
        case float():
            return "float" in kinds
        case str():
            return "str" in kinds
    # A list or node: other people's annotations are often narrower than what their classes take.
    return not own or "container" in kinds or (isinstance(value, dict) and "_target_" in value)
