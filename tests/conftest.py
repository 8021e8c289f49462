"""What every test may rely on: fixed seed and threads, no network, and nothing left behind."""

import os
import random
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

NUM_THREADS = int(os.environ.get("TEST_THREADS", "1"))
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(autouse=True)
def same_conditions() -> Iterator[None]:
    """Seeds, the threads of TEST_THREADS (other counts give other bits), and environment, folder, dtype put back."""
    environment, folder = dict(os.environ), os.getcwd()
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(NUM_THREADS)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture(autouse=True)
def no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections to other machines fail, unless the test is marked net."""
    if request.node.get_closest_marker("net"):
        return
    connect, lookup = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in _LOOPBACK:
            raise ConnectionRefusedError(f"tests have no network, but something connects to {address[0]}")
        return connect(self, address)

    def guarded_lookup(host: Any, *arguments: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        numeric = name is None or name in _LOOPBACK or name.replace(".", "").isdigit() or ":" in name
        if not numeric and name != socket.gethostname():
            raise socket.gaierror(f"tests have no network, but something looks up {name}")
        return lookup(host, *arguments, **options)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_lookup)
