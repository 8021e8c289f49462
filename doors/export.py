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

_COMMAND = "```\npython predict.py run=FOLDER {words}\n```\n\n"
_PYTHON = """From Python, in the project's folder; `Options` are what `python predict.py run=FOLDER --help` lists:

```python
from pathlib import Path

import torch
from datamodules.decode import decode_image
from runs.load import load_run

module = load_run(FOLDER).module
batch = {batch}
results = module.results(batch, module.Options())
```
"""
_PHOTO = '"image": decode_image(Path("photo.jpg"), max_pixels=64_000_000)[None], '
_BATCH = '{{{photo}"index": torch.tensor([0]), "name": ["sample"]}}'


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
    """Writes every part of a module, a README, and the index of diffusers' pipeline where one can do with the parts."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = module.published()
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    pipeline = module.pipeline if module.pipeline and not missing_parts(module.pipeline, parts) else None
    if pipeline is not None:
        index = json.dumps(model_index(pipeline, parts), indent=2)
        (folder / "model_index.json").write_text(index + "\n")
    (folder / "README.md").write_text(readme(module, parts, pipeline), encoding="utf-8")


def missing_parts(pipeline: str, parts: Mapping[str, Any]) -> list[str]:
    """What a pipeline cannot do without, such as the text encoder of an unconditional model."""
    kind = getattr(diffusers, pipeline)
    given = inspect.signature(kind).parameters.values()
    needed = [p.name for p in given if p.default is p.empty and p.name not in kind._optional_components]
    return [name for name in needed if name not in parts]


def readme(module: TranslationModule, parts: Mapping[str, Any], pipeline: str | None) -> str:
    """How the folder is used: by this project, by diffusers' pipeline or, where there is none, part by part."""
    classes = {name: type(part) for name, part in parts.items()}
    rows = [f"| `{name}/` | `{c.__module__.partition('.')[0]}.{c.__name__}` |" for name, c in classes.items()]
    how = (
        f"`diffusers.{pipeline}.from_pretrained(FOLDER)` loads it"
        if pipeline
        else "No pipeline of diffusers does what this model does. Its parts load one by one, by their class's "
        "`from_pretrained(FOLDER, subfolder=PART)`"
    )
    lines = [f"# {type(module).__name__}", how + "; FOLDER is this folder.", "| part | class |\n|---|---|"]
    text = "\n\n".join(lines) + "".join(f"\n{row}" for row in rows) + "\n\n"
    if type(module).results is not TranslationModule.results:
        words = "input=photo.jpg output=DIR" if module.takes_input else "output=DIR"
        text += "The project that wrote it uses it as a run:\n\n" + _COMMAND.format(words=words)
        text += _PYTHON.format(batch=_BATCH.format(photo=_PHOTO if module.takes_input else "")) + "\n"
    return (text + (module.usage() if pipeline or not module.pipeline else "")).rstrip() + "\n"


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
