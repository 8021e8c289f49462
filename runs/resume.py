"""Which folder a run goes to and which checkpoint it starts from."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runs.config import load_config, override, with_run_dir
from runs.folder import RUN_DIR_VARIABLE, is_held, is_main_process, last_checkpoint, status

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A training to do: its config, and the checkpoint it goes on from if it continues in its own folder."""

    config: dict[str, Any]
    resume_from: Path | None = None


def resume_request(overrides: list[str]) -> Path | None:
    """The folder in `resume=RUN_DIR` of a command line; None for a new run and for `resume=auto`."""
    values = [o.partition("=")[2] for o in overrides if o.startswith("resume=")]
    return Path(values[-1]) if values and values[-1] not in ("auto", "null", "") else None


def resumed_job(run_dir: Path, overrides: list[str]) -> Job:
    """The run of a folder with further overrides.

    Raises:
        FileNotFoundError: no run folder, or one without a checkpoint.
        ValueError: a wrong override, or a run that has nothing left to do.
    """
    saved = load_config(run_dir)
    config = override(saved, [o for o in overrides if not o.startswith("resume=")])
    checkpoint = last_checkpoint(run_dir.absolute())
    if not checkpoint.is_file():
        raise FileNotFoundError(
            f"{run_dir} wrote no checkpoint yet, so there is nothing to continue; start it again without resume="
        )
    length = config["trainer"].get("max_steps")
    if status(run_dir) == "finished" and length == saved["trainer"].get("max_steps"):
        raise ValueError(f"{run_dir} is finished; train it further with trainer.max_steps above {length}")
    return Job(config, checkpoint)


def new_job(config: dict[str, Any]) -> Job:
    """A run from a composed config, which with resume=auto may continue an unfinished one.

    Raises:
        FileNotFoundError: ckpt_path is no file.
        ValueError: several processes without a common run_dir.
    """
    automatic = config["resume"] == "auto"
    config = config | {"resume": None}
    given = os.environ.get(RUN_DIR_VARIABLE)
    if given and not is_main_process():  # started by the main process, which chose the folder
        checkpoint = last_checkpoint(Path(given))
        return Job(with_run_dir(config, Path(given)), checkpoint if checkpoint.is_file() else None)
    _check_checkpoint(config)
    found = newest_unfinished(config) if automatic else None
    return Job(config) if found is None else Job(with_run_dir(config, found), last_checkpoint(found))


def newest_unfinished(config: dict[str, Any]) -> Path | None:
    """The newest unfinished run of the experiment with the same config and a checkpoint, trained by nobody now."""
    root = Path(config["run_dir"]).parent
    if root.parent.name == "sweeps":
        root = root.parent.parent
    folders = {p.parent for pattern in ("*", "sweeps/*/*") for p in root.glob(f"{pattern}/config.yaml")}
    for run_dir in sorted(folders, key=lambda p: (p / "config.yaml").stat().st_mtime, reverse=True):
        if status(run_dir) == "finished" or not last_checkpoint(run_dir).is_file():
            continue
        try:
            saved = load_config(run_dir)
        except ValueError:
            continue
        if _comparable(saved) == _comparable(with_run_dir(config, run_dir)) and not is_held(run_dir):
            return run_dir
    return None


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    trainer = {k: v for k, v in config["trainer"].items() if k != "max_steps"}
    return config | {"trainer": trainer, "resume": None, "ckpt_path": None}


def _check_checkpoint(config: dict[str, Any]) -> None:
    path = config["ckpt_path"]
    if path is not None and not Path(path).is_file():
        hint = "; to continue a run folder use resume=" + path if Path(path).is_dir() else ""
        raise FileNotFoundError(f"ckpt_path={path} is no checkpoint file{hint}")


def check_processes(overrides: list[str]) -> None:
    """Processes that a launcher started cannot agree on a folder's name by themselves.

    Raises:
        ValueError: several processes and neither run_dir nor resume.
    """
    started_outside = int(os.environ.get("WORLD_SIZE", "1")) > 1 and RUN_DIR_VARIABLE not in os.environ
    if started_outside and not any(o.startswith(("run_dir=", "resume=")) for o in overrides):
        raise ValueError(
            "several processes were started by a launcher; name their common folder: run_dir=outputs/NAME"
        )


__all__ = ["Job", "check_processes", "new_job", "resume_request", "resumed_job"]
