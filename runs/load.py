"""From a run folder, a checkpoint file, an exported folder or a shipped model's name to a module with its weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin
from lightning_utilities.core.apply_func import apply_to_collection
from torch import nn

from callbacks.ema import average_from_checkpoint
from lightning_modules.base import TranslationModule
from reliability.checkpoint_io import read_checkpoint
from runs.build import build, check_targets, located
from runs.config import read_config, with_run_dir
from runs.folder import best_checkpoint

REPOSITORY = Path(__file__).resolve().parent.parent
PRETRAINED = REPOSITORY / "pretrained"


@dataclass(frozen=True)
class Run:
    """A trained module with the config of its training."""

    module: TranslationModule
    config: dict[str, Any]
    num_steps: int | None = None  # optimiser steps that the weights took; None of an export


def load_run(source: str) -> Run:
    """Rebuilds a run's module and loads its weights, the average (EMA) where the run kept one.

    Args:
        source: run folder (its best checkpoint, else the last), checkpoint file, folder that export.py wrote, or a name
            in pretrained/.

    Raises:
        FileNotFoundError: nothing of that name, a run without a checkpoint, or an export without a part that learns.
        ValueError: a damaged checkpoint or config, or weights that do not fit the config.
    """
    place, config = _configured(source)
    node = config["module"]
    # What serves the training alone and lies in files of the user's: the weights of a loss, and those that it began with.
    node = {key: None if key in ("perceptual", "start") else value for key, value in node.items()}
    if place.is_dir():  # parts that lie in an export are read from there, wherever the training had them from
        node = {
            key: value | {"source": str(place)}
            if isinstance(value, dict) and "source" in value and (place / key).is_dir()
            else value
            for key, value in node.items()
        }
    module: TranslationModule = build(resolve_shipped_paths(node), "module", seed=config["seed"])
    num_steps = None
    if place.is_dir():
        load_exported(module, place)
    else:
        num_steps = _load_checkpoint(module, place)
    module.trained_on(config.get("datamodule", {}))
    return Run(module.eval(), config, num_steps)


def module_class(source: str) -> type[TranslationModule]:
    """The class of a run's module, from its config alone: no weights are read."""
    place, config = _configured(source)
    node = config["module"]
    check_targets(node, "module")
    found = located(str(node.get("_target_")))
    found = getattr(found, "__self__", found)  # a classmethod's class
    if not (isinstance(found, type) and issubclass(found, TranslationModule)):
        raise ValueError(f"{place}: module._target_ is {node.get('_target_')}, which is no method")
    return found


def locate(source: str) -> Path:
    """A checkpoint file, or the folder of an export or a shipped model."""
    path = Path(source)
    if path.is_file():
        return path
    if not path.is_dir():
        shipped = PRETRAINED / source
        if (shipped / "config.yaml").is_file():
            return shipped
        names = ", ".join(sorted(p.parent.name for p in PRETRAINED.glob("*/config.yaml")))
        raise FileNotFoundError(
            f"run={source}: no such run folder or checkpoint; shipped models are: {names}"
        )
    if found := best_checkpoint(path):
        return found
    if any(path.glob("*/*.safetensors")):
        return path
    outer = f"; give run={path.parent}" if (path.parent / "config.yaml").is_file() else "; train it first"
    raise FileNotFoundError(
        f"run={source} holds no checkpoints/best.ckpt or last.ckpt, and no export's folders of weights{outer}"
    )


def resolve_shipped_paths(node: Any) -> Any:
    """The config node with relative model paths (`pretrained/NAME`) made to work from any folder."""

    def from_anywhere(text: str) -> str:
        shipped = REPOSITORY / text
        is_shipped = text.startswith("pretrained/") and (shipped.exists() or not Path(text).exists())
        return str(shipped) if is_shipped else text

    return apply_to_collection(node, str, from_anywhere)


def load_exported(module: TranslationModule, folder: Path) -> None:
    """Takes the weights of `module.exported()` from the sub-folders that export.py wrote.

    Raises:
        FileNotFoundError: a part that learns is missing.
        ValueError: weights that do not fit.
    """
    for name, part in module.exported().items():
        if not isinstance(part, nn.Module):
            continue  # a scheduler or a tokenizer, which the config describes
        if not (folder / name).is_dir():
            if any(p.requires_grad for p in part.parameters()):
                raise FileNotFoundError(f"{folder} has no folder {name} with weights; export the run again")
            continue
        kind: Any = type(part)
        loaded = kind.from_pretrained(folder / name, use_safetensors=True)
        try:
            part.load_state_dict(loaded.state_dict())
        except RuntimeError as error:
            raise ValueError(f"{folder / name} does not fit its config.yaml: {error}") from error
        if isinstance(part, ConfigMixin):  # such as the scale factor of an autoencoder
            settings = {key: value for key, value in loaded.config.items() if not key.startswith("_")}
            part.register_to_config(**settings)


def _configured(source: str) -> tuple[Path, dict[str, Any]]:
    """Where a run's weights are, and its config."""
    place = locate(source)
    config_file = (place.parent.parent if place.is_file() else place) / "config.yaml"
    if not config_file.is_file():
        raise FileNotFoundError(
            f"{config_file} is missing; run= takes the folder that train.py wrote, with its config.yaml"
        )
    config = read_config(config_file, module=dict, seed=int)
    return place, with_run_dir(
        config, config_file.parent
    ) if place.is_file() and "run_dir" in config else config


def _load_checkpoint(module: TranslationModule, path: Path) -> int | None:
    checkpoint = read_checkpoint(path)
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"], strict=False)
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, value in average_from_checkpoint(checkpoint).items():
            parameters[name].copy_(value)
    return checkpoint.get("global_step")
