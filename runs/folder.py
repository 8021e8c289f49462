"""The run folder: made once, held by one process, and marked with how the run ended."""

import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from datamodules.atomic_files import write_text
from reliability.main_process import MAIN_PID_VARIABLE, RUN_DIR_VARIABLE, is_main_process
from reliability.stop_signals import EXIT_CTRL_C, EXIT_SIGTERM
from runs.logs import log_error_to_file, run_log
from runs.words import for_shell

log = logging.getLogger(__name__)

PACKAGES = ("torch", "torchvision", "lightning", "diffusers", "transformers", "timm", "kornia", "hydra-core", "wandb")  # fmt: skip


def last_checkpoint(run_dir: Path) -> Path:
    """Where a run keeps the checkpoint that it continues from."""
    return run_dir / "checkpoints" / "last.ckpt"


def best_checkpoint(run_dir: Path) -> Path | None:
    """The best weights of a run, or the last where no best ones were kept."""
    places = (run_dir / "checkpoints" / "best.ckpt", last_checkpoint(run_dir))
    return next((path for path in places if path.is_file()), None)


def has_checkpoint(run_dir: Path) -> bool:
    """Whether a run kept any checkpoint to go on from; a file of another name beside them is none of its own."""
    kinds = ("last", "previous", "best")  # what reliability.checkpoint_io.newest_whole looks at
    return any((run_dir / "checkpoints" / f"{kind}.ckpt").is_file() for kind in kinds)


def has_only_beginnings(run_dir: Path) -> bool:
    """Whether a run was killed in the folder before it wrote its config: nothing is lost by starting there."""
    if not run_dir.is_dir():
        return False
    names = [entry.name for entry in run_dir.iterdir()]
    drafts = (".status.", ".config.yaml.")
    return all(name in (".lock", "train.log", "status") or name.startswith(drafts) for name in names)


def status(run_dir: Path) -> str:
    """running, finished, stopped: SIGNAL or failed: REASON; empty for a folder without the file."""
    path = run_dir / "status"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


class RunFolder:
    """A run folder that this process holds.

    Attributes:
        path: the folder.
        claimed: whether its config and status are those of this process; an earlier run's stay as they were until then.
    """

    def __init__(self, config: dict[str, Any], *, claimed: bool = False) -> None:
        self.path = Path(config["run_dir"])
        self.claimed = claimed
        self._config = config

    def claim(self) -> None:
        """Marks the folder as running and saves config and environment, unless that is done."""
        if self.claimed:
            return
        self.claimed = True
        # The status comes first: another process that saw "finished" beside the new config would leave with 0.
        write_text(self.path / "status", "running\n")
        write_text(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(self._config)))
        write_text(self.path / "environment.json", json.dumps(environment(), indent=2) + "\n")


@contextmanager
def run_folder(config: dict[str, Any], exists: bool = False) -> Iterator[RunFolder]:
    """Makes (or, if it exists, re-enters) `run_dir`, logs there and notes the end.

    It is left to the caller to claim: at once where it has no checkpoint, else when that one has proved to fit.

    Raises:
        FileExistsError: a new run's folder is there already.
        BlockingIOError: another process trains in the folder.
    """
    folder = RunFolder(config, claimed=not is_main_process())
    run_dir = folder.path
    if not is_main_process():
        with run_log(None, info=False):
            yield folder
        return
    if not exists:
        _make(run_dir)
    with _held(run_dir), run_log(run_dir / "train.log"):
        try:
            os.environ |= {RUN_DIR_VARIABLE: str(run_dir), MAIN_PID_VARIABLE: str(os.getpid())}
            yield folder
        except BaseException as error:
            _note_failure(folder, error)
            raise
        else:
            write_text(run_dir / "status", "finished\n")
            log.info("finished %s", short(run_dir))
        finally:
            for name in (RUN_DIR_VARIABLE, MAIN_PID_VARIABLE):
                os.environ.pop(name, None)


def _make(run_dir: Path) -> None:
    try:
        run_dir.mkdir(parents=True)
    except FileExistsError as error:
        if not run_dir.is_dir() or any(run_dir.iterdir()):  # a sweep's launcher leaves an empty folder
            go_on = f"continue that run with {resume_word(run_dir)} or " if has_checkpoint(run_dir) else ""
            raise FileExistsError(f"{run_dir} exists already; {go_on}choose another run_dir") from error


@contextmanager
def _held(run_dir: Path) -> Iterator[None]:
    """Holds the folder's lock, which the system frees even after a kill."""
    from filelock import FileLock, Timeout  # 0.1 s to import, which --help need not wait for

    try:
        lock = FileLock(run_dir / ".lock").acquire(timeout=0)
    except Timeout as error:
        raise BlockingIOError(
            f"another process is training in {run_dir}; wait for it or start a new run"
        ) from error
    with lock:
        yield


def is_held(run_dir: Path) -> bool:
    """Whether a living process trains in the folder."""
    try:
        with _held(run_dir):
            return False
    except BlockingIOError:
        return True


def _note_failure(folder: RunFolder, error: BaseException) -> None:
    run_dir = folder.path
    if isinstance(error, SystemExit) and error.code in (EXIT_CTRL_C, EXIT_SIGTERM):
        reason = f"stopped: {'Ctrl-C' if error.code == EXIT_CTRL_C else 'SIGTERM'}"
        if has_checkpoint(run_dir):
            log.warning("%s; continue with: python train.py %s", reason, resume_word(run_dir))
        else:
            log.warning("%s before the first step was saved; start it again with resume=auto", reason)
    elif isinstance(error, KeyboardInterrupt):
        reason = "stopped: Ctrl-C"
    else:
        reason = f"failed: {' '.join(f'{type(error).__name__}: {error}'.split())}"
        log_error_to_file(error)
        error.add_note(f"(details: {short(run_dir)}/train.log)")
    if not folder.claimed:
        return
    try:
        write_text(run_dir / "status", reason + "\n")
    except OSError as full:  # it must not hide why the run failed
        log.warning("status not written: %s", full)


def resume_word(run_dir: Path) -> str:
    """`resume=RUN_DIR` to paste into a shell."""
    return for_shell(f"resume={short(run_dir)}")


def short(path: Path) -> str:
    """A path as a user would type it: relative where it lies below the current folder."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def environment() -> dict[str, Any]:
    """Versions and the project's git commit: nothing that names the machine or its user."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def _git(*arguments: str) -> str | None:
    root = Path(__file__).parents[1]
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
