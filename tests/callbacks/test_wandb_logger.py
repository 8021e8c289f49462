"""W&B: offline without a key, a dead server, one id for each run folder, failed runs. No network."""

from __future__ import annotations

import time

import pytest

wandb = pytest.importorskip("wandb")

from callbacks.samples import SamplePictures  # noqa: E402
from callbacks.wandb_logger import INIT_TIMEOUT_S, has_key, make_wandb_logger, run_id  # noqa: E402


@pytest.fixture(autouse=True)
def quiet_wandb(monkeypatch, tmp_path):
    """No account of this machine, and no run left open."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()  # its settings are read from the environment once
    yield
    wandb.finish()


def test_a_key_is_found_in_the_environment_or_netrc(monkeypatch, tmp_path):
    assert not has_key()
    host = wandb.Settings().base_url.removeprefix("https://")
    (tmp_path / "netrc").write_text(f"machine {host} login user password none\n")
    assert has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "http://localhost:1")
    assert not has_key()
    monkeypatch.setenv("WANDB_API_KEY", "none")
    assert has_key()


def test_the_id_stays_with_the_run_folder(tmp_path):
    first = run_id(tmp_path)
    assert run_id(tmp_path) == first
    assert (tmp_path / "wandb_id").read_text() == first + "\n"


def test_without_a_key_the_run_is_offline_and_gets_the_pictures(fit, tiny, tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 3\n")
    logger = make_wandb_logger(tmp_path)
    assert logger.experiment.settings.mode == "offline"
    assert logger.experiment.id == run_id(tmp_path)
    assert logger.experiment.config["seed"] == 3
    fit(tiny(), [SamplePictures(num_images=1)], logger=logger, max_steps=10)
    assert logger.experiment.summary["trainer/global_step"] == 9
    assert "val/loss" in logger.experiment.summary.keys()  # noqa: SIM118  (the summary is no dict)
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/images/samples*.png"))


def test_a_dead_server_means_offline_within_15_seconds(monkeypatch, tmp_path):
    assert INIT_TIMEOUT_S <= 10
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr("callbacks.wandb_logger.INIT_TIMEOUT_S", 2)
    start = time.monotonic()
    logger = make_wandb_logger(tmp_path)
    assert logger.experiment.settings.mode == "offline"
    assert time.monotonic() - start < 15


def test_a_failed_fit_closes_the_run_with_exit_code_1(fit, tiny, tmp_path, monkeypatch):
    logger = make_wandb_logger(tmp_path)
    codes = []
    finish = logger.experiment.finish
    monkeypatch.setattr(
        logger.experiment, "finish", lambda exit_code: (codes.append(exit_code), finish(exit_code))
    )
    with pytest.raises(RuntimeError):
        fit(tiny(fail_at=("train", 3)), [], logger=logger)
    assert codes == [1]


def test_an_unknown_mode_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected auto, online or offline"):
        make_wandb_logger(tmp_path, mode="on")
