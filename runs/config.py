"""From Hydra's config or a run folder's config.yaml to checked plain values."""

import functools
import json
import secrets
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from lightning_utilities.core.apply_func import apply_to_collection
from omegaconf import MISSING, DictConfig, OmegaConf

from runs.build import ROOT, check_plain, values
from runs.choices import groups, is_typo, nearest_key, options
from runs.limits import check_complete
from runs.moved import upgraded
from runs.schema import accepts, check_config
from runs.words import WRITTEN_KEYS, as_text, is_path, readable


@functools.cache
def stamp() -> str:
    """Date, time and a random suffix: the same within a process, never the same in two."""
    return f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{secrets.token_hex(3)}"


OmegaConf.register_new_resolver("stamp", stamp, replace=True)


def resolved(config: DictConfig) -> dict[str, Any]:
    """The config as checked plain values with an absolute run folder."""
    if config.get("module") is None:
        raise ValueError(
            f"no experiment chosen; add experiment=NAME with one of: {', '.join(options('experiment'))}"
        )
    check_complete(config)
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        verb = "has no value" if len(missing) == 1 else "have no value"
        raise ValueError(
            f"{', '.join(missing)} {verb}; set it with {' '.join(f'{key}=VALUE' for key in missing)}"
        )
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    check_config(plain)
    return _anchored(with_run_dir(plain, Path(plain["run_dir"]).expanduser()))


def with_run_dir(config: dict[str, Any], run_dir: Path) -> dict[str, Any]:
    """A copy in which `run_dir` and every value that starts with the old one are moved to another folder."""
    old, new = str(config["run_dir"]), str(run_dir.absolute())

    def moved(text: str) -> str:
        return new + text.removeprefix(old) if text == old or text.startswith(old + "/") else text

    return apply_to_collection(config, str, moved)


def _anchored(node: Any, key: str = "") -> Any:
    """A copy in which paths are absolute, so that a run finds from any folder what it found from the one it started in.

    What nobody has made here stays as it is (a hub's name, a mistake), as do the names of shipped models, which
    `runs.load` finds from anywhere.
    """
    if isinstance(node, dict):
        return {name: _anchored(value, name) for name, value in node.items()}
    if isinstance(node, list):
        return [_anchored(value, key) for value in node]
    if not (isinstance(node, str) and is_path(key) and node != MISSING):
        return node
    path = Path(node).expanduser()
    is_shipped = node.startswith("pretrained/") and path.absolute() == ROOT / node
    return str(path.absolute()) if not is_shipped and (path.exists() or key in WRITTEN_KEYS) else node


def comparable_text(config: dict[str, Any]) -> str:
    """The config as JSON, the same wherever the run folder lies."""
    return json.dumps(with_run_dir(config, Path("/run")), sort_keys=True)


def load_config(run_dir: Path) -> dict[str, Any]:
    """The saved config of a run, with its paths moved if the folder was."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(
            f"{run_dir} is no run folder: it has no config.yaml; give outputs/EXPERIMENT/DATE_TIME"
        )
    return _anchored(with_run_dir(read_config(path, run_dir=str), run_dir))


def read_config(path: Path, **needed: type) -> dict[str, Any]:
    """A saved config with the needed keys as plain values, with today's names.

    It may come from anybody: nothing in it is resolved or built.
    """
    try:
        config = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception as error:  # YAML's and OmegaConf's errors have no common class
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} cannot be read: {reason}") from error
    try:
        check_plain(config, "")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    for key, kind in needed.items():
        if not (isinstance(config, dict) and isinstance(config.get(key), kind)):
            raise ValueError(f"{path} is not the config of a run: it has no {key}")
    return upgraded(config)


def override(config: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """A saved config with `key=value` changes in Hydra's notation, checked like a fresh one."""
    changed = OmegaConf.create(config)
    OmegaConf.set_struct(changed, True)
    for change in OverridesParser.create().parse_overrides(readable(overrides)):
        _apply(changed, change, config)
    plain = OmegaConf.to_container(changed, resolve=True)
    assert isinstance(plain, dict)
    check_config(plain)
    return _anchored(plain)


def _apply(changed: DictConfig, change: Override, config: dict[str, Any]) -> None:
    key = change.key_or_group
    if change.is_delete():
        raise ValueError(f"~{key} cannot change a saved run; set {key}=null instead")
    if change.is_sweep_override():
        raise ValueError(
            f"{change.input_line} is a sweep, but a saved run takes one value per key; for text write "
            f"{as_text(str(change.input_line))}"
        )
    if key == "experiment" or (key in groups() and isinstance(change.value(), str)):
        raise ValueError(
            f"{change.input_line} chooses a group, but a saved run keeps its own; change single keys such as trainer.max_steps=2000"
        )
    keys = dotted_keys(config)
    if not change.is_add() and key not in keys and (is_typo(key, keys) or not accepts(config, key)):
        raise ValueError(f"unknown key '{key}'{nearest_key(key, keys)}")
    OmegaConf.update(changed, key, change.value(), merge=True, force_add=True)


def dotted_keys(config: Any) -> list[str]:
    """All keys of nested dicts as a.b.c, without _target_ and its like."""
    paths = [path for _, path in values(config, "") if path and "[" not in path]
    return [path for path in paths if not path.rpartition(".")[2].startswith("_")]
