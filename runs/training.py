"""The straight line of a training: build the parts, fit, test, write the figures."""

import json
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.model_helpers import is_overridden

from callbacks.checkpoint_io import newest_whole
from callbacks.checkpoints import LastCheckpoint
from lightning_modules.base import TranslationModule
from runs.build import build
from runs.folder import is_main_process, run_folder, short, write_text
from runs.logs import quiet_libraries, run_log
from runs.resume import Job

log = logging.getLogger(__name__)

EXIT_CTRL_C, EXIT_SIGTERM = 130, 143
BAR_EVERY_N_STEPS = 10


def train(job: Job) -> dict[str, float]:
    """Trains what a job describes in its run folder, and returns the final figures by metric name.

    Raises:
        ValueError, OSError: what the config or the data get wrong, in one sentence.
        SystemExit: 130 after Ctrl-C and 143 after SIGTERM, with the last complete step saved.
    """
    quiet_libraries()
    config = job.config
    if job.finished:
        return _finished_figures(Path(config["run_dir"]))
    with run_folder(config, exists=job.folder_exists) as run_dir:
        with _sigterm_exits():
            module, datamodule, trainer = parts(config)
        log.info("%s %s", "continuing" if job.folder_exists else "run folder", short(run_dir))
        with _closed_loggers(trainer), _exit_codes():
            start = _start(job)
            trainer.fit(module, datamodule=datamodule, ckpt_path=start, weights_only=True)
            figures = _figures(trainer)
            figures |= _test(trainer, module, datamodule, run_dir)
        if trainer.is_global_zero:
            write_text(run_dir / "metrics.json", json.dumps(figures, indent=2, sort_keys=True) + "\n")
    return figures


def _finished_figures(run_dir: Path) -> dict[str, float]:
    """What an earlier process reached: the same command may be given again and again."""
    with run_log(None, info=is_main_process()):
        log.info("%s is finished; there is nothing left to do", short(run_dir))
    path = run_dir / "metrics.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _start(job: Job) -> Path | str | None:
    """The checkpoint to start from: its own one, where a folder stands for the newest whole one, or a given one."""
    own = job.resume_from
    if own is not None and own.is_dir():
        own = newest_whole(own)
    return own or job.config["ckpt_path"]


def parts(config: dict[str, Any]) -> tuple[TranslationModule, LightningDataModule, Trainer]:
    """Module, data module and trainer of a resolved config, seeded.

    Raises:
        ValueError, OSError: what they refuse.
    """
    seed_everything(config["seed"], verbose=False)
    datamodule: LightningDataModule = build(config["datamodule"], "datamodule")
    module = build_module(config)
    callbacks: list[Callback] = [
        build(node, f"callbacks.{k}") for k, node in (config["callbacks"] or {}).items() if node
    ]
    if config["trainer"].get("enable_progress_bar", True):
        # Lightning's default bar reads the loss, and so waits for the GPU, in every step.
        callbacks.append(TQDMProgressBar(refresh_rate=BAR_EVERY_N_STEPS))
    loggers = [build(node, f"logger.{k}") for k, node in (config["logger"] or {}).items() if node]
    trainer: Trainer = build(config["trainer"], "trainer", callbacks=callbacks, logger=loggers)
    num_trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    num_frozen = sum(p.numel() for p in module.parameters() if not p.requires_grad)
    log.info(
        "%s: %.2f M trained, %.2f M frozen parameters",
        type(module).__name__,
        num_trained / 1e6,
        num_frozen / 1e6,
    )
    return module, datamodule, trainer


def build_module(config: dict[str, Any]) -> TranslationModule:
    """The module of a resolved config."""
    return build(config["module"], "module", seed=config["seed"], compile=config["compile"])


def _figures(trainer: Trainer) -> dict[str, float]:
    """Metrics by name; of a run that was killed after its last step those of the checkpoint."""
    kept = next((c.figures for c in trainer.callbacks if isinstance(c, LastCheckpoint)), {})
    return kept | {k: float(v) for k, v in trainer.callback_metrics.items() if isinstance(v, torch.Tensor)}


def _test(
    trainer: Trainer, module: TranslationModule, datamodule: LightningDataModule, run_dir: Path
) -> dict[str, float]:
    """Figures of the test split with the best weights, or the last where no best ones were kept."""
    if not is_overridden("test_step", module) or trainer.fast_dev_run:
        return {}
    try:
        datamodule.setup("test")
    except (ValueError, OSError) as error:
        log.info("no test: %s", error)
        return {}
    folder = run_dir / "checkpoints"
    kept = next((p for p in (folder / "best.ckpt", folder / "last.ckpt") if p.is_file()), None)
    trainer.test(module, datamodule=datamodule, ckpt_path=kept, weights_only=True, verbose=False)
    return _figures(trainer)


@contextmanager
def _sigterm_exits() -> Iterator[None]:
    """Before Lightning watches for SIGTERM, the signal ends the process with 143."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(_signum: int, _frame: object) -> NoReturn:
        sys.exit(EXIT_SIGTERM)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _exit_codes() -> Iterator[None]:
    """Lightning leaves with 0 after SIGTERM and with 1 after Ctrl-C."""
    try:
        yield
    except SIGTERMException as error:
        raise SystemExit(EXIT_SIGTERM) from error
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise SystemExit(EXIT_CTRL_C) from error
        raise


@contextmanager
def _closed_loggers(trainer: Trainer) -> Iterator[None]:
    """W&B would note a crashed run as finished and log the next job of a sweep into the same run."""
    code = 1
    try:
        yield
        code = 0
    finally:
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and trainer.is_global_zero:
                logger.experiment.finish(exit_code=code)
