"""Processes that a launcher started find each other and say which of them is not like the others."""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from reliability.ranks import check_same, wait_for_all_ranks
from runs.config import comparable_text
from tests.runs.real_processes import free_port, torchrun_variables

CONFIG: dict[str, Any] = {
    "run_dir": "/a/run",
    "seed": 0,
    "trainer": {"default_root_dir": "/a/run", "devices": 2},
    "callbacks": {"last": {"folder": "/a/run/checkpoints", "every_n_steps": 500}},
}
DIFFERENT = (
    "the config of process 1 of 2 (counted from 0) differs from that of process 0: seed is 1 instead of 0; start all "
    "processes with the same command"
)


def at(run_dir: str, **changes: Any) -> dict[str, Any]:
    """The config with another run folder."""
    trainer = {"default_root_dir": run_dir, "devices": 2}
    last = {"folder": f"{run_dir}/checkpoints", "every_n_steps": 500}
    return {"run_dir": run_dir, "seed": 0, "trainer": trainer, "callbacks": {"last": last}, **changes}


def test_the_run_folder_does_not_count() -> None:
    assert comparable_text(CONFIG) == comparable_text(at("/elsewhere/b"))
    assert comparable_text(CONFIG) != comparable_text(at("/a/run", seed=1))


def test_the_message_names_processes_and_keys() -> None:
    same = comparable_text(CONFIG)
    check_same([same] * 4)
    with pytest.raises(ValueError, match="counted from 0") as caught:
        check_same([same, comparable_text(at("/a/run", seed=1))])
    assert str(caught.value) == DIFFERENT
    other = comparable_text({"run_dir": "/a/run", "seed": 1, "trainer": {"devices": 3}, "new": [1]})
    with pytest.raises(ValueError, match="counted from 0") as caught:
        check_same([same, other, same, other])
    assert str(caught.value) == (
        "the config of process 1, 3 of 4 (counted from 0) differs from that of process 0: callbacks.last.every_n_steps is "
        "absent instead of 500, callbacks.last.folder is absent instead of /run/checkpoints, new is [1] instead of absent, "
        "...; start all processes with the same command"
    )


def _wait(
    variables: dict[str, str], config: dict[str, Any], world_size: int, within_s: float, answers: Any
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        try:
            wait_for_all_ranks(comparable_text(config), world_size, within_s)
            answers.put("met")
        except ValueError as error:
            answers.put(str(error))


def answers_of(*processes: tuple[int, dict[str, Any], int], within_s: float = 60) -> set[str]:
    """What they say in processes given as (rank, config, expected number of processes)."""
    context = multiprocessing.get_context("fork")  # torch is imported already
    answers, port = context.Queue(), free_port()
    started = [
        context.Process(
            target=_wait, args=(torchrun_variables(rank, port), config, number, within_s, answers)
        )
        for rank, config, number in processes
    ]
    for process in started:
        process.start()
    try:
        return {answers.get(timeout=120) for _ in started}
    finally:
        for process in started:
            process.join(5)
            process.kill()


def test_processes_with_the_same_config_meet() -> None:
    assert answers_of((1, CONFIG, 2), (0, at("/b"), 2)) == {"met"}


def test_processes_with_different_configs_all_get_the_reason() -> None:
    assert answers_of((0, CONFIG, 2), (1, at("/a/run", seed=1), 2)) == {DIFFERENT}
    single = at("/a/run", trainer={"default_root_dir": "/a/run", "devices": 1})
    (answer,) = answers_of((0, CONFIG, 2), (1, single, 1))
    assert "differs from that of process 0: trainer.devices is 1 instead of 2" in answer


def test_a_trainer_for_one_process_is_refused_where_two_were_started() -> None:
    (answer,) = answers_of((0, CONFIG, 1), (1, CONFIG, 1))
    assert answer == (
        "a launcher started 2 processes, but trainer.devices and trainer.num_nodes make 1; use trainer=ddp with "
        "trainer.devices=PROCESSES_ON_EACH_MACHINE"
    )


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_process_does_not_wait_for_ever(rank: int) -> None:
    (answer,) = answers_of((rank, CONFIG, 2), within_s=0.5)
    assert answer == (
        f"process {1 - rank} of 2 (counted from 0) has not come within 0.5 s; its own output says why, or it was given "
        "another MASTER_ADDR or MASTER_PORT"
    )


def test_without_a_launcher_nobody_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    wait_for_all_ranks(comparable_text(at(str(tmp_path))), world_size=2)
    monkeypatch.setenv("WORLD_SIZE", "1")
    wait_for_all_ranks(comparable_text(at(str(tmp_path))), world_size=2)
