"""Which of a training's processes this is, from what launchers put into the environment."""

import os

RUN_DIR_VARIABLE = "TRANSLATION_RUN_DIR"  # tells the processes that DDP starts where the main one writes
MAIN_PID_VARIABLE = "TRANSLATION_MAIN_PID"  # and which process that is


def is_main_process() -> bool:
    """Whether this process writes the run folder."""
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return all(int(os.environ.get(name, "0")) == 0 for name in ranks)


def process_number() -> int:
    """The number of this process in its training, from 0."""
    return next((int(os.environ[n]) for n in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if n in os.environ), 0)
