"""What a training refuses before it starts."""

from pathlib import Path

import pytest

from lightning_modules.autoencoder import Autoencoder
from tests.runs.conftest import TINY, Door


def test_manual_optimisation_is_refused_in_one_sentence(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Autoencoder, "automatic_optimization", False)
    message = door(*TINY, "run_dir=run")
    assert isinstance(message, str)
    assert message.startswith(
        "error: Autoencoder sets automatic_optimization=False, under which clipping, accumulat"
    )
    assert "let its players alternate with `with self.turn(...)` in losses" in message
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_data_of_another_task_are_refused_in_one_sentence(door: Door) -> None:
    message = door(*TINY, "datamodule=builtin_unpaired", "run_dir=run")
    assert isinstance(message, str)
    assert message.startswith("error: reconstruction needs data with image, and these have image_a, image_b")
