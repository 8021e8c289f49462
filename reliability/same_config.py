"""The same config in all processes of one training, however they were started."""

import json
import os
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from torch import distributed

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun and others set
WAIT_WITHIN_S = 600  # Lightning itself waits for half an hour
READ_WITHIN_S = 20
CONNECT_WITHIN_S = 5
POLL_S = 0.1
_stores: list[Any] = []  # process 0 serves its store until it ends; Lightning's own uses the same server


def check_same(texts: Sequence[str]) -> None:
    """Compares the configs of all processes as JSON, in the order of their ranks.

    Raises:
        ValueError: they differ; the text names the ranks and the keys.
    """
    others = [rank for rank, text in enumerate(texts) if text != texts[0]]
    if not others:
        return
    first, other = (_leaves(json.loads(texts[rank])) for rank in (0, others[0]))
    keys = sorted(k for k in first.keys() | other.keys() if first.get(k, "absent") != other.get(k, "absent"))
    differences = ", ".join(
        f"{k} is {other.get(k, 'absent')} instead of {first.get(k, 'absent')}" for k in keys[:3]
    )
    more = f" and {len(keys) - 3} more keys differ" if len(keys) > 3 else ""
    names = f"process {others[0]}" if len(others) == 1 else f"processes {', '.join(map(str, others))}"
    verb = "has" if len(others) == 1 else "have"
    raise ValueError(
        f"{names} of {len(texts)} (counted from 0) {verb} another config than process 0: {differences}{more}; start all "
        "processes with the same command"
    )


def wait_for_all_ranks(text: str, world_size: int, within_s: float = WAIT_WITHIN_S) -> None:
    """Waits until all processes that a launcher has started are here, and compares their configs.

    Lightning would wait for half an hour, and for processes that are not of the same number for ever. Processes that
    Lightning starts by itself are compared by `RankWatch`.

    Args:
        text: the config of this process as JSON.
        world_size: the number of processes that its trainer expects.
        within_s: the longest wait.

    Raises:
        ValueError: a process did not come, has another config, or the trainer expects another number.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started == 1 or any(name not in os.environ for name in LAUNCHER_VARIABLES):
        return
    check_same(_exchanged(text, int(os.environ["RANK"]), started, within_s))
    if started != world_size:
        raise ValueError(
            f"a launcher started {started} processes, but trainer.devices and trainer.num_nodes make {world_size}; use "
            "trainer=ddp with trainer.devices=PROCESSES_ON_EACH_MACHINE"
        )


def _exchanged(text: str, rank: int, started: int, within_s: float) -> list[str]:
    """What each process gave, by rank, through a key-value store at the launcher's address."""
    until = time.monotonic() + within_s
    store = _store(rank, started, until)
    if store is None:
        raise ValueError(_absent(0, started, within_s))
    board = distributed.PrefixStore(f"config/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    board.set(str(rank), text)
    for other in range(started):
        while not board.check([str(other)]):  # get() would wait deaf to signals
            if time.monotonic() > until:
                raise ValueError(_absent(other, started, within_s))
            time.sleep(POLL_S)
    texts = [board.get(str(other)).decode() for other in range(started)]
    board.add("read", 1)
    until = time.monotonic() + READ_WITHIN_S
    while rank == 0 and board.add("read", 0) < started and time.monotonic() < until:
        time.sleep(POLL_S)  # if it ended now, so would the store, and the others would not learn the reason
    return texts


def _store(rank: int, started: int, until: float) -> Any:
    """The store of process 0, or of torchrun; None if there is none until then."""
    serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    while True:
        try:
            store = distributed.TCPStore(
                address,
                port,
                started,
                is_master=serves,
                timeout=timedelta(seconds=CONNECT_WITHIN_S),
                wait_for_workers=False,
                multi_tenant=True,
            )
        except distributed.DistError:
            if serves:  # the port is taken
                raise
            if time.monotonic() > until:
                return None
        else:
            _stores.append(store)
            return store


def _absent(rank: int, started: int, within_s: float) -> str:
    return (
        f"process {rank} of {started} (counted from 0) has not come within {within_s:g} s; its own output says why, or "
        "it was given another MASTER_ADDR or MASTER_PORT"
    )


def _leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """The values of nested dicts by dotted key."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        k: v
        for key, part in value.items()
        for k, v in _leaves(part, f"{prefix}.{key}" if prefix else key).items()
    }
