"""The way back: from a run folder, a checkpoint file or a shipped model's name to a module with its weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from callbacks.checkpoint_io import read_checkpoint
from callbacks.ema import average_from_checkpoint
from lightning_modules.base import TranslationModule
from runs.build import build
from runs.config import read_config

REPOSITORY = Path(__file__).resolve().parent.parent
PRETRAINED = REPOSITORY / "pretrained"


@dataclass(frozen=True)
class Run:
    """A trained module and where it came from."""

    module: TranslationModule
    config: dict[str, Any]
    source: Path  # run folder, checkpoint file or shipped model
    num_steps: int | None = None  # optimiser steps that the weights took; None of a shipped model


def load_run(source: str) -> Run:
    """Rebuilds a run's module and loads its weights, the average (EMA) where the run kept one.

    Args:
        source: run folder (its best checkpoint, else the last), checkpoint file, or a name in pretrained/.

    Raises:
        FileNotFoundError: nothing of that name, or a run without a checkpoint.
        ValueError: a damaged checkpoint or config, or a checkpoint that does not fit its config.
    """
    place = locate(source)
    config_file = (place.parent.parent if place.is_file() else place) / "config.yaml"
    if not config_file.is_file():
        raise FileNotFoundError(
            f"{config_file} is missing; run= takes the folder that train.py wrote, with its config.yaml"
        )
    config = read_config(config_file)
    node = config.get("module")
    if not isinstance(node, dict) or not isinstance(config.get("seed"), int):
        raise ValueError(f"{config_file} is not the config of a run: it has no module or no seed")
    # Its weights serve the training loss alone and lie in a file of the user's.
    node = {**node, "perceptual": None} if "perceptual" in node else node
    module = build(at_home(node), "module", seed=config["seed"])
    if place.is_dir():
        module.load_export(place)
        return Run(module.eval(), config, place)
    num_steps = _load_checkpoint(module, place)
    return Run(module.eval(), config, place, num_steps)


def locate(source: str) -> Path:
    """A checkpoint file, or the folder of a shipped model.

    Raises:
        FileNotFoundError: neither, with the shipped names.
    """
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
    if path.resolve().parent == PRETRAINED:
        return path
    for name in ("best.ckpt", "last.ckpt"):
        if (path / "checkpoints" / name).is_file():
            return path / "checkpoints" / name
    raise FileNotFoundError(f"run={source} holds no checkpoints/best.ckpt or last.ckpt; train it first")


def at_home(node: Any) -> Any:
    """The config node with relative model paths (`pretrained/NAME`) made to work from any folder."""
    if isinstance(node, dict):
        return {key: at_home(value) for key, value in node.items()}
    if isinstance(node, list):
        return [at_home(value) for value in node]
    if isinstance(node, str) and node.startswith("pretrained/") and not Path(node).exists():
        return str(REPOSITORY / node)
    return node


def _load_checkpoint(module: TranslationModule, path: Path) -> int | None:
    checkpoint = read_checkpoint(path)
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"], strict=False)
    average = average_from_checkpoint(checkpoint)
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, value in average.items():
            parameters[name].copy_(value)
    return checkpoint.get("global_step")
