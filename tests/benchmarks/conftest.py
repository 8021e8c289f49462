"""The tiny runs that all measurements of colorizers draw with."""

import pytest

from tests.benchmarks.small_runs import save_runs


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_runs(tmp_path_factory.mktemp("runs"))
