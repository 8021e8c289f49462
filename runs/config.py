"""From Hydra's config to the plain dict that a run folder keeps."""

import os
import secrets
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

# Jobs that start in the same second must not share a folder; the suffix is drawn once per config.
OmegaConf.register_new_resolver("unique", lambda: secrets.token_hex(2), use_cache=True, replace=True)


def resolved(config: DictConfig) -> dict[str, Any]:
    """The config as plain values with its absolute run folder, also saved there as config.yaml.

    Raises:
        ValueError: a value is missing.
    """
    run_dir = Path(HydraConfig.get().runtime.output_dir).absolute()
    config = OmegaConf.merge(config, {"run_dir": str(run_dir)})
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        run_dir.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.create(plain), run_dir / "config.yaml")
    return plain
