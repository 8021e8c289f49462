"""Writes a trained module as a folder that plain diffusers loads, and run= too."""

import inspect
import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
from omegaconf import OmegaConf

from doors.options import ExportOptions
from lightning_modules.base import TranslationModule
from networks.latent_diffusion_parts import to_dtype
from runs.load import load_run

log = logging.getLogger(__name__)


def export(door: ExportOptions) -> Path:
    """Writes safetensors, configs and model_index.json, and the run's config.yaml beside them.

    The folder appears whole or not at all.
    """
    folder, dtype = Path(door.output), to_dtype(door.dtype)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"output={door.output} is not an empty folder; give a new one")
    run = load_run(door.run)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as scratch:
        written = Path(scratch) / "folder"
        save_exported(run.module.to(dtype), written)
        OmegaConf.save(OmegaConf.create(run.config), written / "config.yaml")
        if folder.exists():
            folder.rmdir()
        written.rename(folder)
    log.info("exported to %s", folder)
    return folder


def save_exported(module: TranslationModule, folder: Path) -> None:
    """Writes every part of a module, and the index by which diffusers' pipeline loads them where there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = module.exported()
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    if module.pipeline is not None:
        index = json.dumps(model_index(module.pipeline, parts), indent=2)
        (folder / "model_index.json").write_text(index + "\n")


def model_index(pipeline: str, parts: Mapping[str, Any]) -> dict[str, Any]:
    """What model_index.json says: library and class of each part of a pipeline; [None, None] of those left out."""
    wanted = inspect.signature(getattr(diffusers, pipeline)).parameters.values()
    found = {
        name: [type(part).__module__.partition(".")[0], type(part).__name__] for name, part in parts.items()
    }
    absent = {p.name: [None, None] for p in wanted if p.name not in found and not isinstance(p.default, bool)}
    # Stable Diffusion's pipelines warn where they have no safety checker, unless the folder says so itself.
    settings = {p.name: False for p in wanted if p.name.startswith("requires_")}
    about = {"_class_name": pipeline, "_diffusers_version": diffusers.__version__}
    return about | found | absent | settings
