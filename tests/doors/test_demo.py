"""The demo trains what it says, and its page shows before, after and truth."""

import sys
from pathlib import Path

from hydra import compose, initialize_config_dir

from doors import demo as door
from doors.demo import DemoOptions, demo, training_command
from runs.choices import CONF
from runs.config import override, resolved
from tests.runs.saved_runs import save_colorizer


def test_the_training_command_is_a_valid_config(tmp_path: Path) -> None:
    command = training_command(7, tmp_path / "run", ["trainer.accelerator=cpu"])
    assert command[:3] == [sys.executable, "train.py", "experiment=colorize_controlnet"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = resolved(compose("train", command[2:]))
    assert config["trainer"]["max_steps"] == 7
    assert config["module"]["num_warmup_steps"] == 7
    assert override(config, [])["run_dir"] == str(tmp_path / "run")


def test_the_page_shows_before_after_and_truth(tmp_path: Path, monkeypatch) -> None:
    run_dir = save_colorizer(tmp_path, sd=False)
    monkeypatch.setattr(door, "SHIPPED", str(run_dir))
    monkeypatch.setattr(door, "NUM_IMAGES", 2)
    monkeypatch.setattr(door, "SIZE_PX", 32)
    monkeypatch.setattr(door, "training_command", lambda *_: [sys.executable, "-c", "pass"])
    monkeypatch.setattr(door, "stamp", lambda: str(run_dir))
    page = demo(DemoOptions(output=str(tmp_path / "demo")), []).read_text(encoding="utf-8")
    assert "python -c pass" in page
    for title in ("fresh run", "shipped model", "a vivid sample", "grey", "mean colour", "truth"):
        assert f">{title}</th>" in page
