"""The straight line of a training: build the parts, fit, test, write the figures."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.utilities.model_helpers import is_overridden

from callbacks.wandb_logger import RunWandbLogger
from datamodules.atomic_files import write_text
from lightning_modules.base import TranslationModule
from reliability.checkpoint_io import newest_whole
from reliability.checkpoints import LastCheckpoint
from reliability.lightning_internals import check_names
from reliability.main_process import RUN_DIR_VARIABLE, is_main_process
from reliability.preemption import Preemption, requeue
from reliability.ranks import RankWatch, end_with_main, wait_for_all_ranks
from reliability.stop_signals import StopSignals
from runs.build import build
from runs.config import comparable_text
from runs.folder import RunFolder, best_checkpoint, has_checkpoint, run_folder, short
from runs.load import resolve_shipped_paths
from runs.logs import run_log
from runs.resume import Job

log = logging.getLogger(__name__)

BAR_EVERY_N_STEPS = 10


def train(job: Job) -> dict[str, float]:
    """Trains what a job describes in its run folder, and returns the final figures by metric name.

    Raises:
        ValueError, OSError: what the config or the data get wrong, in one sentence.
        SystemExit: 130 after Ctrl-C and 143 after SIGTERM, with the last complete step saved.
    """
    config = job.config
    if job.finished:
        return _finished_figures(Path(config["run_dir"]))
    with StopSignals() as stop, run_folder(config, exists=job.folder_exists) as folder, _exit_codes(stop):
        if not has_checkpoint(folder.path):
            folder.claim()
        end_with_main()
        text = comparable_text(config)
        ranks = RankWatch(text)
        module, datamodule, trainer = parts(config, ranks, ClaimFolder(folder))
        for callback in trainer.callbacks:
            if isinstance(callback, Preemption):
                callback.watch(stop)
        with ranks.ended(trainer), _closed_loggers(trainer, stop):
            log.info("%s %s", "continuing" if job.resume_from else "run folder", short(folder.path))
            start = _start(job)
            wait_for_all_ranks(text, trainer.world_size)
            trainer.fit(module, datamodule=datamodule, ckpt_path=start, weights_only=True)
            stop.leave_if_received()
            folder.claim()  # where all steps were made before, no batch came
            figures = _figures(trainer)
            figures |= _test(trainer, module, datamodule, folder.path)
            stop.leave_if_received()
        if trainer.is_global_zero:
            write_text(folder.path / "metrics.json", json.dumps(figures, indent=2, sort_keys=True) + "\n")
    return figures


class ClaimFolder(Callback):
    """Claims the run folder with the first batch: fit has restored the checkpoint by then and checked all it checks."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.folder.claim()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first batch of a run whose validation was interrupted."""
        if not trainer.sanity_checking:
            self.folder.claim()


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


def parts(
    config: dict[str, Any], *watching: Callback
) -> tuple[TranslationModule, LightningDataModule, Trainer]:
    """Module, data module and trainer of a resolved config, seeded; `watching` callbacks come first."""
    seed_everything(config["seed"], verbose=False)
    datamodule: LightningDataModule = build(config["datamodule"], "datamodule")
    module = build_module(config)
    if not module.automatic_optimization:
        raise ValueError(
            f"{type(module).__name__} sets automatic_optimization=False, under which clipping, accumulation, schedules, "
            "the guards and exact resume do nothing; let its players alternate with `with self.turn(...)` in losses"
        )
    nodes = (config["callbacks"] or {}).items()
    callbacks = [*watching, *(build(node, f"callbacks.{k}") for k, node in nodes if node)]
    if config["trainer"].get("enable_progress_bar", True):
        # Lightning's default bar reads the loss, and so waits for the GPU, in every step.
        callbacks.append(TQDMProgressBar(refresh_rate=BAR_EVERY_N_STEPS))
    loggers = [build(node, f"logger.{k}") for k, node in (config["logger"] or {}).items() if node]
    trainer: Trainer = build(config["trainer"], "trainer", callbacks=callbacks, logger=loggers)
    check_names(trainer)
    total = sum(p.numel() for p in module.parameters()) / 1e6
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad) / 1e6
    log.info("%s: %.2f M trained, %.2f M frozen parameters", type(module).__name__, trained, total - trained)
    return module, datamodule, trainer


def build_module(config: dict[str, Any]) -> TranslationModule:
    """The module of a resolved config, whatever folder the command was given in."""
    return build(
        resolve_shipped_paths(config["module"]), "module", seed=config["seed"], compile=config["compile"]
    )


def _figures(trainer: Trainer) -> dict[str, float]:
    """Metrics by name; of a run that was killed after its last step those of the checkpoint."""
    kept = next((c.figures for c in trainer.callbacks if isinstance(c, LastCheckpoint)), {})
    return kept | {k: float(v) for k, v in trainer.callback_metrics.items() if isinstance(v, torch.Tensor)}


def _test(
    trainer: Trainer, module: TranslationModule, datamodule: LightningDataModule, run_dir: Path
) -> dict[str, float]:
    """Figures of the test split with the best weights."""
    if not is_overridden("test_step", module) or trainer.fast_dev_run:
        return {}
    try:
        datamodule.setup("test")
    except (ValueError, OSError) as error:
        log.info("no test: %s", error)
        return {}
    kept = best_checkpoint(run_dir)
    trainer.test(module, datamodule=datamodule, ckpt_path=kept, weights_only=True, verbose=False)
    return _figures(trainer)


@contextmanager
def _exit_codes(stop: StopSignals) -> Iterator[None]:
    """After a signal SLURM gets its job back, and the process ends with its code, whatever broke on the way out."""
    try:
        yield
    except BaseException as error:
        if not stop.explains(error):
            raise
        if stop.received in stop.requeue_after and is_main_process():
            requeue()
        # Lightning's watch over the processes it started kills the main one when one of them ends with another code.
        started_by_main = RUN_DIR_VARIABLE in os.environ and not is_main_process()
        raise SystemExit(0 if started_by_main else stop.exit_code) from error


@contextmanager
def _closed_loggers(trainer: Trainer, stop: StopSignals) -> Iterator[None]:
    """W&B would note a crashed run as finished and log the next job of a sweep into the same run."""
    code = 1
    try:
        yield
        code = 0
    except BaseException as error:
        code = stop.exit_code if stop.explains(error) else 1
        raise
    finally:
        for logger in trainer.loggers:
            if isinstance(logger, RunWandbLogger):
                try:
                    logger.close(code)
                except Exception as error:  # how a run ended is not for its logger to decide
                    log.warning("W&B was not closed properly: %s", error)
