"""Checks of a composed config that need no heavy import: keys, types, targets and missing values."""

from typing import Any

from runs.build import OWN_ROOMS, check_plain, check_targets
from runs.choices import nearest, train_keys
from runs.signatures import Signature, kinds, signature

_HYDRA_KEYS = {"_target_", "_partial_"}
_SCALARS = {
    "experiment_name": {"str"},
    "run_dir": {"str"},
    "resume": {"str", "None"},
    "ckpt_path": {"str", "None"},
    "seed": {"int"},
    "compile": {"bool"},
}
_NODES = ("module", "datamodule", "trainer", "callbacks", "logger")


def check_config(config: dict[str, Any]) -> None:
    """Refuses unknown keys, values of a wrong type and targets that are not on the allow-list.

    Raises:
        ValueError: with the config path, the value and the nearest names.
    """
    known = train_keys()
    for key in config:
        if key not in known:
            raise ValueError(f"unknown key '{key}'{nearest(key, known)}")
    check_plain(config, "")
    check_targets(config, "")
    for key, allowed in _SCALARS.items():
        if key in config:
            _check_scalar(key, config[key], allowed, own=True)
    for key in _NODES:
        _check_node(config.get(key), key)


def accepts(config: Any, path: str) -> bool:
    """Whether the class at the parent of `path` takes a key that the config leaves out."""
    node = config
    *parents, name = path.split(".")
    for part in parents:
        node = node.get(part) if isinstance(node, dict) else None
    target = node.get("_target_") if isinstance(node, dict) else None
    found = signature(target) if isinstance(target, str) else None
    return found is not None and name in found.arguments


def _check_node(node: Any, path: str) -> None:
    if isinstance(node, list):
        for index, value in enumerate(node):
            _check_node(value, f"{path}[{index}]")
    if not isinstance(node, dict):
        return
    target = node.get("_target_")
    found = signature(target) if isinstance(target, str) else None
    if found is not None and isinstance(target, str):
        _check_arguments(node, path, found, own=target.startswith(OWN_ROOMS))
    for key, value in node.items():
        _check_node(value, f"{path}.{key}")


def _check_arguments(node: dict[str, Any], path: str, found: Signature, own: bool) -> None:
    for key, value in node.items():
        if key in _HYDRA_KEYS:
            continue
        if key in found.arguments:
            _check_scalar(f"{path}.{key}", value, kinds(found.arguments[key]), own)
        elif not found.open:
            name = node["_target_"].rpartition(".")[2]
            raise ValueError(
                f"unknown key '{path}.{key}': {name} takes no '{key}'{nearest(key, found.arguments)}"
            )


def _check_scalar(path: str, value: Any, allowed: set[str], own: bool) -> None:
    if "any" in allowed or _fits(value, allowed, own):
        return
    expected = " or ".join(sorted(k if k != "None" else "null" for k in allowed if k != "container" or own))
    given = "null" if value is None else repr(value)
    hint = f"; write {int(value)}" if isinstance(value, float) and value == int(value) else ""
    raise ValueError(f"{path} is {given}, expected {expected}{hint}")


def _fits(value: Any, allowed: set[str], own: bool) -> bool:
    match value:
        case None:
            return not own or "None" in allowed
        case bool():
            return "bool" in allowed
        case int():
            return bool(allowed & {"int", "float"})
        case float():
            return "float" in allowed
        case str():
            return "str" in allowed
    # A list or node: other people's annotations are often narrower than what their classes take.
    return not own or "container" in allowed or (isinstance(value, dict) and "_target_" in value)
