"""Which folder a run goes to and which checkpoint it starts from."""

import logging
import os
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from reliability.main_process import RUN_DIR_VARIABLE, is_main_process
from runs.build import values
from runs.config import load_config, override, stamp, with_run_dir
from runs.folder import (
    has_checkpoint,
    has_only_beginnings,
    is_held,
    last_checkpoint,
    resume_word,
    short,
    status,
)
from runs.words import text_of

log = logging.getLogger(__name__)

# A run may go on with other values of these: what it learns and how it is measured stay the same.
WITHOUT_RESULT = (
    "resume",
    "ckpt_path",
    "logger*",
    "trainer.max_steps",
    "trainer.log_every_n_steps",
    "trainer.enable_*",
    "trainer.profiler*",
    "datamodule.num_workers",
    "datamodule.timeout_s",
    "datamodule.image_cache",
    "*.cache_dir",
    "*.text_cache_dir",
    "callbacks.*.every_n_steps",
    "callbacks.*.folder",
    "callbacks.progress*",
    "callbacks.samples*",
    "callbacks.throughput*",
)


@dataclass(frozen=True)
class Job:
    """A training to do."""

    config: dict[str, Any]  # resolved
    resume_from: Path | None = None  # its own checkpoint; a folder means the newest whole one in it
    folder_exists: bool = False
    finished: bool = False  # nothing is left to do


def resume_request(overrides: list[str]) -> Path | None:
    """The folder in `resume=RUN_DIR` of a command line; None for a new run and for `resume=auto`."""
    given = [word for word in overrides if word.startswith("resume=")]
    text = text_of(given[-1]) if given else ""
    return Path(text) if text not in ("auto", "null", "") else None


def resumed_job(run_dir: Path, overrides: list[str]) -> Job:
    """The run of a folder with further overrides."""
    saved = load_config(run_dir)
    config = override(saved, [o for o in overrides if not o.startswith("resume=")])
    checkpoint = last_checkpoint(run_dir.absolute())
    # Another one is named where last.ckpt is damaged, such as previous.ckpt.
    if config["ckpt_path"] not in (None, saved["ckpt_path"]):
        _check_checkpoint(config)
        checkpoint = Path(config["ckpt_path"])
    elif not has_checkpoint(run_dir):
        other = (
            f"another run_dir ({run_dir} is finished)"
            if status(run_dir) == "finished"
            else f"run_dir={run_dir}"
        )
        raise FileNotFoundError(
            f"{run_dir} wrote no checkpoint yet, so there is nothing to continue; start it again without resume= and with "
            f"{other}"
        )
    elif not checkpoint.is_file():
        checkpoint = checkpoint.parent
    if _is_done(run_dir, config, saved):
        length = config["trainer"].get("max_steps")
        raise ValueError(f"{run_dir} is finished; train it further with trainer.max_steps above {length}")
    return Job(config | {"ckpt_path": saved["ckpt_path"]}, checkpoint, folder_exists=True)


def _is_done(run_dir: Path, config: dict[str, Any], saved: dict[str, Any]) -> bool:
    """Whether a run finished at the length that the config asks for."""
    same_length = config["trainer"].get("max_steps") == saved["trainer"].get("max_steps")
    return status(run_dir) == "finished" and same_length


def new_job(config: dict[str, Any]) -> Job:
    """A run from a composed config, which with resume=auto may continue an unfinished one.

    Raises:
        FileNotFoundError: ckpt_path is no file.
        ValueError: run_dir holds a run with another config, or one whose checkpoints are gone.
    """
    automatic = config["resume"] == "auto"
    config = config | {"resume": None}
    given = os.environ.get(RUN_DIR_VARIABLE)
    if given and not is_main_process():  # started by the main process, which chose the folder
        return Job(with_run_dir(config, Path(given)), _checkpoints(Path(given)), folder_exists=True)
    _check_checkpoint(config)
    if automatic:
        return _continued(config)
    return Job(config, folder_exists=_may_start_anew(Path(config["run_dir"])))


def _may_start_anew(run_dir: Path) -> bool:
    """Whether the folder's run ended without a checkpoint, so that a start there loses nothing.

    Raises:
        ValueError: its checkpoints were lost; starting over would cost the curve too.
    """
    if has_only_beginnings(run_dir):  # killed before its config was written
        return True
    if status(run_dir) in ("", "finished") or has_checkpoint(run_dir):  # an export has no status
        return False
    _check_curve(run_dir, load_config(run_dir))
    return True


def _continued(config: dict[str, Any]) -> Job:
    """What resume=auto means: the same command goes on where it was stopped, wherever that was."""
    run_dir = Path(config["run_dir"])
    if _may_start_anew(run_dir):
        return Job(config, folder_exists=True)
    if stamp() not in run_dir.parts and (run_dir / "config.yaml").is_file():  # a folder that the user named
        saved = load_config(run_dir)  # before the status, which the main process of a new start writes first
        _check_same(run_dir, saved, config)
        finished = _is_done(run_dir, config, saved)
        if not finished and not has_checkpoint(run_dir):
            _check_curve(run_dir, saved)
        return Job(config, _checkpoints(run_dir), folder_exists=True, finished=finished)
    found = newest_unfinished(config) if stamp() in run_dir.parts else None
    if found is None:
        return Job(config)
    return Job(with_run_dir(config, found), _checkpoints(found), folder_exists=True)


def _checkpoints(run_dir: Path) -> Path | None:
    return last_checkpoint(run_dir).parent if has_checkpoint(run_dir) else None


def _check_same(run_dir: Path, saved: dict[str, Any], config: dict[str, Any]) -> None:
    theirs, ours = _comparable(saved), _comparable(config)
    if key := _first_difference(theirs, ours):
        there, here = (f"{key}={shown[key]}" if key in shown else f"no {key}" for shown in (theirs, ours))
        raise ValueError(
            f"{short(run_dir)} holds a run with another config, {there} where this command has {here}; choose another "
            f"run_dir, or go on with that run: python train.py {resume_word(run_dir)}"
        )


def _check_curve(run_dir: Path, saved: dict[str, Any]) -> None:
    """Refuses to start over where checkpoints were lost; a run killed before its first one may start again."""
    from callbacks.csv_logger import AppendingCSVLogger  # Lightning takes seconds to import, and this is rare

    every_n_steps = ((saved["callbacks"] or {}).get("last") or {}).get("every_n_steps")
    rows = AppendingCSVLogger(run_dir).rows()
    reached = max((int(row["step"]) for row in rows if (row.get("step") or "").isdigit()), default=0)
    if every_n_steps is not None and reached >= every_n_steps:
        raise ValueError(
            f"the curve of {short(run_dir)} reaches step {reached} but no checkpoint is there; restore one, choose "
            "another run_dir, or delete its metrics.csv to start over"
        )


def newest_unfinished(config: dict[str, Any]) -> Path | None:
    """The newest unfinished run of the experiment with the same config and a checkpoint, trained by nobody now.

    Where there are only ones with another config, a warning names the newest of them; a sweep has them always.
    """
    other: str | None = None
    root = Path(config["run_dir"]).parent
    is_sweep = root.name == stamp()
    if is_sweep:  # outputs/EXPERIMENT/sweeps/STAMP/NUMBER
        root = root.parent.parent
    folders = {p.parent for pattern in ("*", "sweeps/*/*") for p in root.glob(f"{pattern}/config.yaml")}
    for run_dir in sorted(folders, key=lambda p: (p / "config.yaml").stat().st_mtime, reverse=True):
        if status(run_dir) == "finished" or not has_checkpoint(run_dir):
            continue
        try:
            saved = load_config(run_dir)
        except ValueError:
            continue
        if is_held(run_dir):
            continue
        key = _first_difference(_comparable(saved), _comparable(with_run_dir(config, run_dir)))
        if key is None:
            return run_dir
        other = other or (
            f"{short(run_dir)} is unfinished, but its {key} differs from this command's, so a "
            f"new run starts; to go on with that one: python train.py {resume_word(run_dir)}"
        )
    if other and not is_sweep:
        log.warning("%s", other)
    return None


def _first_difference(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    """The config path at which two flat configs differ first."""
    return next((k for k in [*one, *other] if one.get(k, ...) != other.get(k, ...)), None)


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    """The values of a config by their paths, without those that change no result."""
    leaves = {path: value for value, path in values(config, "") if not isinstance(value, dict)}
    return {k: v for k, v in leaves.items() if not any(fnmatch(k, kind) for kind in WITHOUT_RESULT)}


def _check_checkpoint(config: dict[str, Any]) -> None:
    path = config["ckpt_path"]
    if path is not None and not Path(path).is_file():
        hint = f"; to continue a run folder use {resume_word(Path(path))}" if Path(path).is_dir() else ""
        raise FileNotFoundError(f"ckpt_path={path} is no checkpoint file{hint}")


def check_processes(overrides: list[str]) -> None:
    """Processes that a launcher started cannot agree on a folder's name by themselves."""
    count = os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or "1"
    started_outside = int(count) > 1 and RUN_DIR_VARIABLE not in os.environ
    named = any(o.startswith("run_dir=") for o in overrides) or resume_request(overrides) is not None
    if started_outside and not named:
        raise ValueError(
            "several processes were started by a launcher; name their common folder: run_dir=outputs/NAME"
        )
