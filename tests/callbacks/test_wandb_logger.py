"""W&B's real client, offline: keys, dead servers, ids, resumed curves, exit codes, and nothing of the machine. No network."""

from __future__ import annotations

import getpass
import math
import re
import socket
import time

import pytest
from PIL import Image

wandb = pytest.importorskip("wandb")

from callbacks.csv_logger import AppendingCSVLogger  # noqa: E402
from callbacks.samples import SamplePictures  # noqa: E402
from callbacks.wandb_logger import (  # noqa: E402
    FINISH_TIMEOUT_S,
    INIT_TIMEOUT_S,
    RunWandbLogger,
    chosen_mode,
    has_key,
    run_id,
)
from tests.wandb_record import history, records  # noqa: E402

KEY = "0123456789" * 4


@pytest.fixture(autouse=True)
def quiet_wandb(monkeypatch, tmp_path):
    """No account of this machine, and no run left open."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()  # its settings are read from the environment once
    yield
    wandb.teardown()


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "someone" / "run"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"seed: 3\nrun_dir: {folder}\nfolder: {tmp_path / 'photos'}\n")
    return folder


def files(run_dir):
    """The records on disk, oldest first, once the client has written them."""
    wandb.teardown()
    return sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb"))


def test_a_key_is_found_in_the_environment_or_netrc(monkeypatch, tmp_path):
    assert not has_key()
    host = wandb.Settings().base_url.removeprefix("https://")
    (tmp_path / "netrc").write_text(f"machine {host} login user password none\n")
    assert has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "http://localhost:1")
    assert not has_key()
    monkeypatch.setenv("WANDB_API_KEY", "none")
    assert has_key()


def test_online_without_a_key_is_offline_and_says_so(caplog):
    assert chosen_mode("online") == "offline"
    assert caplog.messages == [
        "W&B is offline: there is no API key; run `wandb login` or set WANDB_API_KEY before the next start, and upload "
        "this run later with `wandb sync`"
    ]


def test_the_environment_chooses_the_mode_unless_the_config_does(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert chosen_mode("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert chosen_mode("auto") == "offline"
    assert chosen_mode("online") == "online"


def test_the_id_stays_with_the_run_folder(tmp_path):
    first = run_id(tmp_path)
    assert run_id(tmp_path) == first
    assert (tmp_path / "wandb_id").read_text() == first + "\n"


def test_a_logger_that_logs_nothing_starts_no_run(run_dir):
    logger = RunWandbLogger(run_dir)
    logger.close(1)
    assert [path.name for path in run_dir.iterdir()] == ["config.yaml"]


def test_without_a_key_the_run_is_offline_and_gets_the_pictures(fit, tiny, run_dir):
    logger = RunWandbLogger(run_dir)
    fit(tiny(), [SamplePictures(num_images=1)], logger=logger, max_steps=10)
    assert logger.experiment.settings.mode == "offline"
    assert logger.experiment.id == run_id(run_dir)
    assert logger.experiment.config["seed"] == 3
    logger.close()
    (path,) = files(run_dir)
    steps = {row["trainer/global_step"] for row in history(path) if "samples" in row}
    assert steps == {9}
    assert list(path.parent.glob("files/media/images/samples*.png"))


@pytest.fixture(params=["refusing", pytest.param("silent", marks=pytest.mark.slow)])
def dead_server(request, monkeypatch):
    """A W&B server that refuses connections, or takes them and never answers; there is a key for it."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        port = 9 if request.param == "refusing" else server.getsockname()[1]
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        yield


@pytest.mark.usefixtures("dead_server")
def test_a_dead_server_means_offline(monkeypatch, run_dir, caplog):
    monkeypatch.setattr("callbacks.wandb_logger.INIT_TIMEOUT_S", 1)
    logger = RunWandbLogger(run_dir)
    assert logger.experiment.settings.mode == "offline"
    (message,) = (r.message for r in caplog.records if r.name == "callbacks.wandb_logger")
    assert re.fullmatch(r"W&B is offline: .+; upload this run later with `wandb sync`", message)
    assert KEY not in message
    logger.log_metrics({"loss": 0.5}, step=0)
    logger.close()
    assert [row["loss"] for row in history(files(run_dir)[-1])] == [0.5]


@pytest.mark.slow
@pytest.mark.usefixtures("dead_server")
def test_with_the_real_timeout_the_start_takes_less_than_15_seconds(run_dir):
    assert (INIT_TIMEOUT_S, FINISH_TIMEOUT_S) == (8, 30)
    start = time.monotonic()
    logger = RunWandbLogger(run_dir)
    assert logger.experiment.settings.mode == "offline"
    assert time.monotonic() - start < 15


@pytest.mark.parametrize(("code", "preempting"), [(0, False), (1, False), (130, False), (143, True)])
def test_the_record_ends_with_the_exit_code(run_dir, code, preempting):
    logger = RunWandbLogger(run_dir)
    logger.log_metrics({"loss": 0.5}, step=0)
    logger.close(code)
    (path,) = files(run_dir)
    found = list(records(path))
    assert [r.exit.exit_code for r in found if r.HasField("exit")] == [code]
    assert any(r.HasField("preempting") for r in found) == preempting


def test_a_resumed_run_keeps_its_id_and_logs_no_row_twice(run_dir):
    for steps in (range(4), range(2, 6)):  # stopped after step 3, resumed at step 2
        logger, table = RunWandbLogger(run_dir), AppendingCSVLogger(run_dir)
        assert logger.experiment
        table.drop_from(steps[0])
        for step in steps:
            for log in (logger, table):
                log.log_metrics({"loss": step / 7, "epoch": 0}, step=step)
            if step % 2:
                picture = Image.new("RGB", (2, 2), (step, step, step))
                logger.log_image("samples", [picture], step=step)
                for log in (logger, table):
                    log.log_metrics({"val/loss": step / 3, "epoch": 0}, step=step)
        logger.close()
        wandb.teardown()
    first, second = files(run_dir)
    assert first.name == second.name == f"run-{run_id(run_dir)}.wandb"
    rows = history(first) + history(second)
    numbers = [row["_step"] for row in rows]
    assert numbers == sorted(set(numbers))
    found = [(row["trainer/global_step"], row.get("loss", row.get("val/loss"))) for row in rows]
    assert found == [
        *((0, 0), (1, 1 / 7), (1, None), (1, 1 / 3), (2, 2 / 7), (3, 3 / 7), (3, None), (3, 1.0)),
        *((4, 4 / 7), (5, 5 / 7), (5, None), (5, 5 / 3)),
    ]


def test_a_run_that_starts_with_w_and_b_later_first_logs_its_curve(run_dir):
    """Steps 0 to 3 were trained without it; the run goes on from step 2, and step 1 is never trained again."""
    table = AppendingCSVLogger(run_dir)
    for step in range(4):
        table.log_metrics({"loss": step / 7, "epoch": 0}, step=step)
        if step == 1:
            table.log_metrics({"val/loss": math.nan, "epoch": 0}, step=step)
    logger = RunWandbLogger(run_dir)
    for step in range(2, 5):
        logger.log_metrics({"loss": step / 7, "epoch": 0}, step=step)
    logger.close()
    (path,) = files(run_dir)
    rows = history(path)
    assert [(row["trainer/global_step"], row["epoch"]) for row in rows] == [
        *((0, 0), (1, 0), (1, 0), (2, 0), (3, 0), (4, 0)),
    ]
    assert [row["loss"] for row in rows if "loss" in row] == [step / 7 for step in range(5)]
    assert math.isnan(rows[2]["val/loss"])


def machine_words(tmp_path):
    """What names this machine, its user and its folders, as whole words."""
    names = (socket.gethostname(), getpass.getuser(), str(tmp_path), KEY)
    return re.compile("|".join(rf"(?<![\w-]){re.escape(name)}(?![\w-])" for name in names))


def test_the_record_says_nothing_of_the_machine(monkeypatch, run_dir, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    logger = RunWandbLogger(run_dir, mode="offline")
    logger.log_metrics({"loss": 0.5}, step=0)
    logger.close()
    (path,) = files(run_dir)
    found = list(records(path))
    assert not any(r.HasField("environment") for r in found)
    assert not machine_words(tmp_path).search("\n".join(map(str, found)))
    assert not list(path.parent.glob("files/*"))  # neither requirements.txt nor metadata
    (run,) = (r.run for r in found if r.HasField("run"))
    assert run.host == ""
    config = {item.key: item.value_json for item in run.config.update}
    assert (config["seed"], config["run_dir"], config["folder"]) == ("3", '".../run"', '".../photos"')
    for log in run_dir.rglob("*.log"):
        assert KEY not in log.read_text()


def test_machine_info_is_recorded_on_request(run_dir):
    logger = RunWandbLogger(run_dir, machine_info=True)
    logger.log_metrics({"loss": 0.5}, step=0)
    logger.close()
    (path,) = files(run_dir)
    (run,) = (r.run for r in records(path) if r.HasField("run"))
    assert run.host == socket.gethostname()
    assert {i.key: i.value_json for i in run.config.update}["run_dir"] == f'"{run_dir}"'
    assert any(r.HasField("environment") for r in records(path))


def test_an_unknown_mode_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected auto, online or offline"):
        RunWandbLogger(tmp_path, mode="on")
