"""The tiny training of the callbacks' tests and the door of the runs'."""

from tests.callbacks.conftest import fit, tiny  # noqa: F401
from tests.runs.conftest import door  # noqa: F401
