"""The training door inside the test's process, in an empty folder."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = (
    "experiment=autoencoder",
    "module.vae.block_out_channels=[8,8,8]",
    "module.vae.norm_num_groups=4",
    "datamodule.size_px=32",
    "datamodule.batch_size=2",
    "trainer.accelerator=cpu",
    "trainer.max_steps=2",
    "trainer.enable_progress_bar=false",
)

Door = Callable[..., "int | str | None"]


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Door]:
    """Calls `python train.py ARGUMENTS` and returns the exit code, which is the message of a user error."""
    import train
    from runs.cli import Launch, run_door
    from runs.config import stamp

    monkeypatch.chdir(tmp_path)
    environment = dict(os.environ)

    def call(*arguments: str) -> int | str | None:
        monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), *arguments])
        monkeypatch.setattr(train, "launch", Launch())
        stamp.cache_clear()
        os.environ.pop("HYDRA_FULL_ERROR", None)
        try:
            run_door(train.main)
        except SystemExit as end:
            return end.code
        return 0

    yield call
    os.environ.clear()
    os.environ.update(environment)
