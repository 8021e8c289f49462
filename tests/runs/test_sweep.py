"""Several trainings of one command: what fails, what is shown, and where each of them writes."""

from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import runs.config
from runs.folder import status
from runs.sweep import Outcome, check_single_process, table
from tests.runs.conftest import TINY

SHORT = (
    *TINY,
    "trainer.val_check_interval=3",
    "trainer.limit_val_batches=1",
    "callbacks.samples=null",
    "datamodule=photos",
    "datamodule.root=photos",
)


@pytest.fixture
def photos(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("train/0", "train/1", "val/0", "val/1"):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)


def test_one_crash_of_four_costs_one_result(door, photos, tmp_path: Path, capfd) -> None:
    words = ("trainer.max_steps=3", "module.optimizer.lr=1e-3,1e30,1e-4,3e-4")
    assert door("-m", *SHORT, *words) == 1
    out, err = capfd.readouterr()
    head, *rows = out.strip().splitlines()[-5:]
    assert head.split() == ["job", "overrides", "val/loss", "status"]
    assert [row.split()[:2] for row in rows] == [
        [str(i), f"module.optimizer.lr={rate}"]
        for i, rate in enumerate(("0.001", "1e+30", "0.0001", "0.0003"))
    ]
    finished = [row.endswith("  finished") for row in rows]
    assert finished == [True, False, True, True]
    assert "failed: The loss (term: l1, kl) is not finite at step 2" in rows[1]
    assert "error: job 1: " in err

    folders = sorted((tmp_path / "outputs/autoencoder/sweeps").glob("*/*/status"))
    assert [status(f.parent).partition(":")[0] for f in folders] == ["finished", "failed"] + 2 * ["finished"]
    assert [(f.parent / "metrics.json").is_file() for f in folders] == finished


def test_commands_of_one_second_have_folders_of_their_own(door, photos, tmp_path: Path, monkeypatch) -> None:
    class Stopped(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2030, 1, 2, 3, 4, 5)

    monkeypatch.setattr(runs.config, "datetime", Stopped)
    for _ in range(2):
        assert door(*SHORT, "debug=fast") == 0
        assert door("-m", *SHORT, "debug=fast", "seed=1") == 0
    outputs = tmp_path / "outputs/autoencoder"
    single = [p for p in outputs.iterdir() if p.name != "sweeps"]
    sweeps = list((outputs / "sweeps").iterdir())
    for folders in (single, sweeps):
        assert len(folders) == 2
        assert all(p.name.startswith("2030-01-02_03-04-05-") for p in folders)
    assert [status(p) for p in (*single, *(s / "0" for s in sweeps))] == 4 * ["finished"]


@pytest.mark.parametrize(
    ("words", "setting"),
    [
        (("trainer.devices=2",), "trainer.devices is 2"),
        (("trainer=ddp",), "trainer.devices is -1"),
        (("trainer=fsdp",), "trainer.devices is -1"),
        (("trainer.devices=auto",), "trainer.devices is auto"),
        (("trainer.devices='0,1'",), "trainer.devices is 0,1"),
        (("trainer.devices=[0,1]",), "trainer.devices is [0, 1]"),
        (("+trainer.num_nodes=2", "+trainer.strategy=ddp"), "trainer.num_nodes is 2"),
    ],
)
def test_a_sweep_of_several_processes_is_refused_with_advice(
    door, words: tuple[str, ...], setting: str
) -> None:
    key = setting.partition(" ")[0]
    assert door("-m", "experiment=autoencoder", "seed=1,2", *words) == (
        f"error: a sweep (-m) trains each job in one process, but {setting}: each further process would run the whole "
        f"sweep again; set {key}=1, or start the jobs one by one without -m"
    )


@pytest.mark.parametrize("word", ["run_dir=mine", "run_dir=a,b", "++run_dir=mine"])
def test_a_sweeps_folder_is_not_run_dir(door, word: str, tmp_path: Path) -> None:
    assert door("-m", "experiment=autoencoder", "seed=1,2", word) == (
        "error: run_dir= has no effect in a sweep (-m), which numbers its runs' folders; set hydra.sweep.dir=DIR instead"
    )
    assert not list(tmp_path.rglob("config.yaml"))


@pytest.mark.parametrize("devices", [1, "1", [0], "0,", [3]])
def test_one_device_may_be_named_in_every_way(devices: object, monkeypatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    check_single_process({"trainer": {"devices": devices, "strategy": "ddp"}})


def test_a_launcher_outside_may_start_several(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_single_process({"trainer": {"devices": 2}})


def test_the_table_shows_what_differs() -> None:
    outcomes = [
        Outcome(0, ["a=1", "b=2"], "finished", 0.123456),
        Outcome(1, ["a=1", "b=3"], "failed: no", None),
    ]
    assert table(outcomes).splitlines() == [
        "job  overrides  val/loss  status",
        "0    b=2        0.12346   finished",
        "1    b=3        -         failed: no",
    ]
