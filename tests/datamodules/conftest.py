"""Small synthetic photo sets on disk."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Writer = Callable[..., Path]


def picture(number: int, *, height: int = 24, width: int = 32) -> Image.Image:
    """A colour of its own with a ramp and a bright corner, so that a flip, a shift and a wrong file all show."""
    rgb = np.empty((height, width, 3), dtype=np.uint8)
    rgb[:] = (number * 37 % 200, number * 91 % 200, number * 53 % 200)
    rgb += np.arange(width, dtype=np.uint8)[:, None] + np.arange(height, dtype=np.uint8)[:, None, None]
    rgb[: height // 4, : width // 4] = 255
    return Image.fromarray(rgb)


@pytest.fixture
def write_photos(tmp_path: Path) -> Writer:
    """Function that writes `num` PNG files NAME_0.png ... into a folder below tmp_path and returns that folder."""

    def write(folder: str, num: int, *, first: int = 0, name: str = "photo") -> Path:
        target = tmp_path / folder
        target.mkdir(parents=True, exist_ok=True)
        for number in range(num):
            picture(first + number).save(target / f"{name}_{number}.png")
        return target

    return write
