"""The command line: what it may tell Hydra, errors of users in one sentence, and the launch of trainings."""

import os
import re
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from reliability.main_process import RUN_DIR_VARIABLE, is_main_process, process_number
from reliability.stop_signals import EXIT_CTRL_C
from runs.config import resolved, with_run_dir
from runs.messages import sentence
from runs.resume import Job, check_processes, new_job, resume_request, resumed_job
from runs.sweep import Outcome, check_single_process, report_failure, table
from runs.words import as_text

# ValueError and OSError are what our code raises for what a user can mend.
USER_ERRORS = (ValueError, OSError, HydraException, OmegaConfBaseException)

# Hydra builds what stands under `hydra:` (callbacks, launchers, log handlers) while it composes, before any check of
# ours. Those settings belong to the files in conf/; the words of a command can come from a sweep's server.
HYDRA_ALLOWED = (
    "hydra.run.dir",
    "hydra.sweep.dir",
    "hydra.sweep.subdir",
    "hydra.sweeper.direction",
    "hydra.sweeper.max_batch_size",
    "hydra.sweeper.n_trials",
    "hydra.verbose",
    "hydra/sweeper",
)
HYDRA_FLAGS = {
    "experimental_rerun": "unpickles a file, which can run code; continue a run with resume=RUN_DIR",
    "config_path": "would read other configs than conf/; put your files into conf/experiment",
    "config_name": "would read another config than conf/train.yaml; put your file into conf/experiment",
    "config_dir": "would read configs that nobody checked; put your files into conf/experiment or conf/local",
}


def read_command_line(words: list[str]) -> Namespace:
    """The words as Hydra's own parser reads them, after refusing what would make it build objects or read pickles.

    Raises:
        ValueError: with the word; also for several values without -m.
        OverrideParseException: a word that is no override.
    """
    given = get_args_parser().parse_args(words)
    for flag, reason in HYDRA_FLAGS.items():
        if getattr(given, flag) is not None:
            raise ValueError(f"--{flag.replace('_', '-')} is refused: it {reason}")
    for change in OverridesParser.create().parse_overrides(given.overrides):
        word = str(change.input_line)
        if change.is_sweep_override() and not given.multirun and change.key_or_group != "resume":
            raise ValueError(
                f"'{word}' has several values; add -m for a sweep, or for text write {as_text(word)}"
            )
        if change.key_or_group.startswith("hydra") and change.value() == "":
            raise ValueError(f"{word} is empty, perhaps from a shell variable that is not set")
        if _is_refused(change):
            raise ValueError(
                f"'{change.input_line}' is refused: of Hydra's own settings a command may set "
                f"{', '.join(HYDRA_ALLOWED)}; the others belong into conf/train.yaml"
            )
    return given


def _is_refused(change: Override) -> bool:
    """Whether a word reaches into `hydra:`, but for one plain value of the allowed keys.

    Folders may be interpolated; a sweeper is built from its settings, so that there an interpolation is not.
    """
    key, package, value = change.key_or_group, change.package or "", change.value()
    if not any(re.match(r"hydra([./]|$)", place) for place in (key, package)):
        return False
    is_plain = isinstance(value, (str, int, float, bool)) and (key.endswith("dir") or "${" not in str(value))
    return key not in HYDRA_ALLOWED or package.startswith("hydra") or not is_plain


def run_door(main: Callable[[], None]) -> None:
    """Runs a door; a user error prints one line and exits with 1, Ctrl-C exits with 130.

    Tracebacks of user errors are shown with HYDRA_FULL_ERROR=1; other errors always keep theirs.
    """
    # A process that the main one started has inherited what the next line sets there.
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1" and RUN_DIR_VARIABLE not in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises its errors instead of printing them
    # torchvision and torch-fidelity ask torch.load to run what a file of weights says; this forbids it to all.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    try:
        main()
    except BrokenPipeError as error:
        if not _output_is_closed():
            sys.exit(f"error: {sentence(error, _overrides())}")
    except USER_ERRORS as error:
        if wants_traceback:
            raise
        process = "" if is_main_process() else f"process {process_number()}: "
        sys.exit(f"error: {process}{sentence(error, _overrides())}")
    except KeyboardInterrupt:
        sys.exit(EXIT_CTRL_C)


def _output_is_closed() -> bool:
    """Whether the reader of our output, such as head, has left; then what follows goes nowhere."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _overrides() -> list[str]:
    return [a for a in sys.argv[1:] if not a.startswith("-") and "=" in a]


class Launch:
    """Takes configs from Hydra: one training waits until Hydra is done, those of a sweep run as they come."""

    def __init__(self) -> None:
        self.job: Job | None = None
        self.error: Exception | None = None
        self.outcomes: list[Outcome] = []

    def resume(self, overrides: list[str], multirun: bool) -> bool:
        """Whether the command line has `resume=RUN_DIR`, which needs no composing."""
        run_dir = resume_request(overrides)
        if run_dir is None:
            return False
        if multirun:
            raise ValueError("resume=RUN_DIR continues one run; leave out -m, or use resume=auto for a sweep")
        self.job = resumed_job(run_dir, overrides)
        return True

    def add(self, config: DictConfig) -> float | None:
        """Hydra's task: the val/loss of a sweep's job for sweepers that look for the best."""
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            return self._sweep_job(config)
        try:
            check_processes(list(HydraConfig.get().overrides.task))
            self.job = new_job(_placed(config))
        except USER_ERRORS as error:
            self.error = error  # raised in here, Hydra would print a line of its own
        return None

    def run(self) -> None:
        """Trains the waiting job, or ends a sweep with its table, and with exit code 1 if a job of it failed."""
        if self.error is not None:
            raise self.error
        if self.job is not None:
            from runs.training import train

            train(self.job)
        if self.outcomes:
            sys.stdout.write(f"\n{table(self.outcomes)}\n")
            if any(outcome.status != "finished" for outcome in self.outcomes):
                sys.exit(1)

    def _sweep_job(self, config: DictConfig) -> float:
        hydra = HydraConfig.get()
        number, overrides = int(hydra.job.num), list(hydra.overrides.task)
        loss, status = None, "finished"
        try:
            plain = _placed(config)
            try:
                check_single_process(plain, overrides)
            except ValueError as error:  # each job would be refused alike
                sys.exit(f"error: {error}")
            from runs.training import train

            loss = train(new_job(plain)).get("val/loss")
        except Exception as error:
            status = report_failure(error, number, overrides, expected=isinstance(error, USER_ERRORS))
        self.outcomes.append(Outcome(number, overrides, status, loss))
        return float("nan") if loss is None else loss


def _placed(config: DictConfig) -> dict[str, Any]:
    """The resolved config; Hydra's own output folder, where it has one, is the run folder."""
    plain = resolved(config)
    output_dir = Path(HydraConfig.get().runtime.output_dir)
    return plain if output_dir == Path.cwd() else with_run_dir(plain, output_dir)
