import resource
import signal
from pathlib import Path

import pytest

from datamodules.atomic_files import write_text


def test_a_file_that_the_disk_takes_in_part_is_an_error_and_changes_nothing(tmp_path: Path) -> None:
    """The system writes what fits and returns how much that was; the error comes with the next byte."""
    path = tmp_path / "a.txt"
    write_text(path, "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_text(path, "x" * 1500)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
