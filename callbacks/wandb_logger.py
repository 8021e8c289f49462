"""A W&B run that is offline without a key, survives a dead network, and is resumed with its run folder."""

from __future__ import annotations

import logging
import netrc
import os
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import yaml
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

logger = logging.getLogger(__name__)

INIT_TIMEOUT_S = 10  # with the start of the offline run it stays below 15 s; W&B's default is 90 s
ID_FILE = "wandb_id"


class RunWandbLogger(WandbLogger):
    """Lightning's logger, which also marks a failed fit as failed: W&B itself sees exit code 0 until the end."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Closes the run with exit code 1 unless `status` is success; an open run can still log a test."""
        super().finalize(status)
        if status != "success" and self._experiment is not None:
            self._experiment.finish(exit_code=1)


def make_wandb_logger(
    run_dir: str | Path,
    project: str = "latent-translation",
    name: str | None = None,
    entity: str | None = None,
    mode: str = "auto",
    tags: list[str] | None = None,
) -> WandbLogger:
    """Starts (or resumes) the W&B run of a run folder.

    The id stands in `run_dir/wandb_id`, so a resumed run continues the same W&B run. If the server is not reached
    within 10 s, the run goes on offline and `wandb sync` can upload it later.

    Args:
        run_dir: the run folder; W&B's own files go to its subfolder `wandb`.
        project: W&B project.
        name: name of the run; None means the run folder's name.
        entity: user or team; None means the account's default.
        mode: online, offline, or auto = WANDB_MODE if set, else online if a key is at hand.
        tags: of the run.

    Raises:
        ValueError: if mode is unknown.
        ImportError: if wandb is not installed.
    """
    if mode not in ("auto", "online", "offline"):
        raise ValueError(
            f"W&B mode is {mode!r}, expected auto, online or offline; set logger.wandb.mode=offline."
        )
    run_dir = Path(run_dir)
    options: dict[str, Any] = {
        "project": project,
        "entity": entity,
        "name": name or run_dir.name,
        "dir": str(run_dir),
    }
    if rank_zero_only.rank != 0:
        return RunWandbLogger(**options)
    run_dir.mkdir(parents=True, exist_ok=True)
    config_file = run_dir / "config.yaml"
    config = yaml.safe_load(config_file.read_text(encoding="utf-8")) if config_file.is_file() else None
    options |= {"id": run_id(run_dir), "tags": tags, "config": config}
    run = _start(_chosen_mode(mode), options)
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return RunWandbLogger(experiment=run, save_dir=str(run_dir), project=project, id=options["id"])


def run_id(run_dir: Path) -> str:
    """The W&B id of a run folder; drawn and stored at the first call."""
    path = run_dir / ID_FILE
    if path.is_file() and (stored := path.read_text(encoding="ascii").strip()):
        return stored
    fresh = secrets.token_hex(4)
    path.write_text(fresh + "\n", encoding="ascii")
    return fresh


def has_key() -> bool:
    """Whether WANDB_API_KEY or a netrc entry for the server is there; the key itself is not used."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    import wandb  # slow to import: only runs with logger=wandb pay for it

    server = os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url
    host = urlparse(server).hostname or ""
    default = Path.home() / ("_netrc" if os.name == "nt" else ".netrc")
    path = Path(os.environ.get("NETRC", default))
    try:
        return path.is_file() and netrc.netrc(str(path)).authenticators(host) is not None
    except (netrc.NetrcParseError, OSError) as error:
        logger.warning("%s cannot be read, so W&B runs offline: %s", path, error)
        return False


def _chosen_mode(mode: str) -> str:
    if mode != "auto":
        return mode
    return os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")


def _start(mode: str, options: dict[str, Any]) -> Any:
    import wandb

    settings = wandb.Settings(init_timeout=INIT_TIMEOUT_S, console="off")
    common = {**options, "resume": "allow", "reinit": "finish_previous", "settings": settings}
    try:
        return wandb.init(**common, mode=mode)  # type: ignore[arg-type]  # one of its literals
    except wandb.errors.Error as error:
        if mode == "offline":
            raise
        logger.warning("W&B is offline, upload later with `wandb sync`: %s", str(error).split("\n")[0])
        wandb.teardown()  # the failed start still holds the id
        return wandb.init(**common, mode="offline")
