"""A W&B run that is offline without a key, survives a dead network, and is resumed with its run folder."""

from __future__ import annotations

import logging
import netrc
import os
import secrets
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, Literal
from urllib.parse import urlparse

import yaml
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from callbacks.csv_logger import AppendingCSVLogger
from diffusion.choices import check_literal
from reliability.stop_signals import EXIT_SIGTERM

logger = logging.getLogger(__name__)

INIT_TIMEOUT_S = 8  # with the teardown of the failed start (2 s) it stays below 15 s; W&B's default is 90 s
FINISH_TIMEOUT_S = 30  # W&B's default is to wait for ever, also after SIGTERM
STEP_KEY = "trainer/global_step"  # Lightning's name for the logger's step
ROWS_A_STEP = 10  # more than a step logs: the number of the first row of an offline run that goes on
Mode = Literal["auto", "online", "offline"]


class RunWandbLogger(WandbLogger):
    """Starts (or resumes) the W&B run of a run folder at its first use, and ends it as the training ended.

    The id stands in `run_dir/wandb_id`, so a resumed run continues the same W&B run, and leaves out the rows that
    metrics.csv had before, which come again. A run that starts with W&B later first logs what metrics.csv has. Without a
    key, or if the server is not reached within 8 s, the run goes on offline and `wandb sync` can upload it later.

    Args:
        run_dir: the run folder; W&B's own files go to its subfolder `wandb`.
        project: W&B project.
        name: name of the run; None means the run folder's name.
        entity: user or team; None means the account's default.
        mode: online, offline, or auto = WANDB_MODE if set, else online if a key is at hand.
        tags: of the run.
        machine_info: record what W&B collects by itself: host, user's folders, command line, git remote, packages.
            Without it the config's absolute paths keep their last part alone.
    """

    def __init__(
        self,
        run_dir: str | Path,
        project: str = "latent-translation",
        name: str | None = None,
        entity: str | None = None,
        mode: Mode = "auto",
        tags: list[str] | None = None,
        machine_info: bool = False,
    ) -> None:
        check_literal("logger.wandb.mode", mode, Mode)
        self.run_dir = Path(run_dir)
        name = name or self.run_dir.name
        super().__init__(project=project, name=name, save_dir=str(run_dir))
        self._options = {
            "project": project,
            "name": name,
            "entity": entity,
            "tags": tags,
            "dir": str(run_dir),
        }
        self._mode = mode
        self._machine_info = machine_info
        self._run: Any = None
        self._logged: set[tuple[int | None, frozenset[str]]] = set()
        self._logged_until = -1
        self._next_row: int | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, started at the first call; a dummy on all processes but the first."""
        if self._run is None:
            self._run = self._begin()
        return self._run

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Logs one row, unless the run logged it before it was resumed at an earlier step."""
        run = self.experiment
        is_curve = all(isinstance(value, (int, float, Tensor)) for value in metrics.values())
        known = (step, frozenset(metrics)) in self._logged if is_curve else (step or 0) <= self._logged_until
        if not known:
            self._log(run, metrics, step)

    @rank_zero_only
    def close(self, exit_code: int = 0) -> None:
        """Ends the run, if it was started, with the exit code of the training.

        W&B shows 0 as finished and the others as failed; with 143 (SIGTERM) the run is also marked as preempting, so
        that W&B shows it as preempted, and its own sweeps start it again.
        """
        if self._run is None:
            return
        if exit_code == EXIT_SIGTERM:
            self._run.mark_preempting()
        self._run.finish(exit_code=exit_code)
        self._run = None

    def _begin(self) -> Any:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        identity = run_id(self.run_dir)
        goes_on = any(self.run_dir.glob(f"wandb/*run-*/run-{identity}.wandb"))
        path = self.run_dir / "config.yaml"
        config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
        if not self._machine_info:
            config = without_folders(config)
        settings = {"id": identity, "config": config, "resume": "allow", "reinit": "finish_previous"}
        run = _start(chosen_mode(self._mode), self._options | settings, _settings(self._machine_info))
        run.define_metric(STEP_KEY)
        run.define_metric("*", step_metric=STEP_KEY, step_sync=True)
        for texts in AppendingCSVLogger(self.run_dir).rows():
            step = int(text) if (text := texts.pop("step")) else None
            row = {name: float(text) for name, text in texts.items() if text}
            self._logged.add((step, frozenset(row)))
            self._logged_until = max(self._logged_until, step or 0)
            if not goes_on:
                self._log(run, row, step)
        if goes_on and run.offline:  # online the server says where the rows go on
            self._next_row = ROWS_A_STEP * (self._logged_until + 1)
        return run

    def _log(self, run: Any, metrics: Mapping[str, Any], step: int | None) -> None:
        number, self._next_row = self._next_row, None  # None: W&B counts on from the row before
        run.log(dict(metrics) if step is None else {**metrics, STEP_KEY: step}, step=number, commit=True)


def run_id(run_dir: Path) -> str:
    """The W&B id of a run folder; drawn and stored at the first call."""
    path = run_dir / "wandb_id"
    if path.is_file() and (stored := path.read_text(encoding="ascii").strip()):
        return stored
    fresh = secrets.token_hex(4)
    path.write_text(fresh + "\n", encoding="ascii")
    return fresh


def without_folders(value: Any) -> Any:
    """A config in which every absolute path keeps its last part alone.

    Example:
        >>> without_folders({"root": "/data/someone/photos", "scales": [1, "~/x"]})
        {'root': '.../photos', 'scales': [1, '.../x']}
    """
    if isinstance(value, dict):
        return {key: without_folders(part) for key, part in value.items()}
    if isinstance(value, list):
        return [without_folders(part) for part in value]
    if isinstance(value, str) and (value.startswith("~") or PurePath(value).is_absolute()):
        return f".../{PurePath(value).name}"
    return value


def has_key() -> bool:
    """Whether WANDB_API_KEY or a netrc entry for the server is there; the key itself is not used."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    import wandb  # slow to import: only runs with logger=wandb pay for it

    server = os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url
    path = os.environ.get("NETRC") or str(Path.home() / ".netrc")
    try:
        return netrc.netrc(path).authenticators(urlparse(server).hostname or "") is not None
    except FileNotFoundError:
        return False
    except (netrc.NetrcParseError, OSError) as error:
        logger.warning("%s cannot be read, so W&B runs offline: %s", path, error)
        return False


def chosen_mode(mode: str) -> str:
    """The mode to start in: auto is resolved, and online without a key is offline, for W&B would ask for one."""
    wanted = (os.environ.get("WANDB_MODE") or "auto") if mode == "auto" else mode
    if wanted == "auto":
        return "online" if has_key() else "offline"
    if wanted == "online" and not has_key():
        logger.warning(
            "W&B is offline: there is no API key; run `wandb login` or set WANDB_API_KEY before the next start, and "
            "upload this run later with `wandb sync`"
        )
        return "offline"
    return wanted


def _settings(machine_info: bool) -> Any:
    import wandb

    settings: dict[str, Any] = {"init_timeout": INIT_TIMEOUT_S, "console": "off"}
    if "finish_timeout" in wandb.Settings.model_fields:  # older clients lack it
        settings["finish_timeout"] = FINISH_TIMEOUT_S
    if not machine_info:
        settings |= {"x_disable_meta": True, "x_save_requirements": False, "disable_git": True}
        settings |= {"save_code": False, "host": ""}
    return wandb.Settings(**settings)


def _start(mode: str, options: dict[str, Any], settings: Any) -> Any:
    import wandb

    try:
        return wandb.init(**options, settings=settings, mode=mode)  # type: ignore[arg-type]  # one of its literals
    except wandb.errors.Error as error:
        if mode == "offline":
            raise
        reason = str(error).split("\n")[0] or type(error).__name__
        logger.warning("W&B is offline: %s; upload this run later with `wandb sync`", reason)
        wandb.teardown()  # the failed start still holds the id
        return wandb.init(**options, settings=settings, mode="offline")
