"""Writes a trained module as a folder that plain diffusers loads."""

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from runs.load import load_run
from runs.options import option

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportOptions:
    """Options of export.py."""

    run: str = option("run folder, checkpoint file, or a name in pretrained/")
    output: str = option("folder to write; it must not exist yet or be empty")
    dtype: str = option("float32, float16 or bfloat16 of the stored weights", "float32")


def export(options: ExportOptions) -> Path:
    """Writes safetensors, configs and model_index.json, and the run's config.yaml beside them.

    The folder appears whole or not at all.

    Raises:
        ValueError: a folder with content, or an unknown dtype.
    """
    from networks.latent_diffusion_parts import to_dtype

    folder = Path(options.output)
    dtype = to_dtype(options.dtype)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"output={options.output} is not an empty folder; give a new one")
    run = load_run(options.run)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as scratch:
        written = Path(scratch) / "folder"
        written.mkdir()
        run.module.to(dtype).export(written)
        OmegaConf.save(OmegaConf.create(run.config), written / "config.yaml")
        if folder.exists():
            folder.rmdir()
        written.rename(folder)
    log.info("exported to %s", folder)
    return folder
