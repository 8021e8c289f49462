from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules.check import main


def test_report_and_exit_codes(
    write_photos: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_photos("a", 2)
    assert main([f"root={root}"]) == 0
    assert capsys.readouterr().out == "2 images, 0 broken\n"

    content = (root / "photo_0.png").read_bytes()
    (root / "photo_1.png").write_bytes(content[: len(content) // 2])
    assert main([f"root={root}"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "photo_1.png" in lines[0]
    assert "truncated" in lines[0]
    assert lines[1] == "2 images, 1 broken"

    assert main([f"root={root}", "max_pixels=5"]) == 1
    assert main([f"root={tmp_path / 'missing'}"]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main([]) == 2
    assert "usage:" in capsys.readouterr().err
