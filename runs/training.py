"""The straight line of a training: build the parts, fit, test, write the figures."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything

from lightning_modules.base import TranslationModule
from runs.build import build

log = logging.getLogger(__name__)


def train(config: dict[str, Any]) -> dict[str, float]:
    """Trains what a resolved config describes in its `run_dir`, and returns the final figures.

    Args:
        config: plain dict, as saved in config.yaml; `ckpt_path` resumes.

    Raises:
        ValueError, OSError: what the config or the data get wrong, in one sentence.
    """
    run_dir = Path(config["run_dir"])
    seed_everything(config["seed"], verbose=False)
    datamodule: LightningDataModule = build(config["datamodule"], "datamodule")
    module: TranslationModule = build(
        config["module"], "module", seed=config["seed"], compile=config["compile"]
    )
    callbacks: list[Callback] = [
        build(node, f"callbacks.{k}") for k, node in (config["callbacks"] or {}).items() if node
    ]
    loggers = [build(node, f"logger.{k}") for k, node in (config["logger"] or {}).items() if node]
    trainer: Trainer = build(config["trainer"], "trainer", callbacks=callbacks, logger=loggers)
    num_trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    num_frozen = sum(p.numel() for p in module.parameters() if not p.requires_grad)
    log.info(
        "%s: %.2f M trained, %.2f M frozen parameters",
        type(module).__name__,
        num_trained / 1e6,
        num_frozen / 1e6,
    )

    trainer.fit(module, datamodule=datamodule, ckpt_path=config["ckpt_path"], weights_only=True)
    figures = {k: float(v) for k, v in trainer.callback_metrics.items() if isinstance(v, torch.Tensor)}
    if trainer.is_global_zero:
        (run_dir / "metrics.json").write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n")
    return figures
