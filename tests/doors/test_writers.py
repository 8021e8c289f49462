"""Strips in, files out: what Pillow reads back is what went in, and memory does not grow with the height."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import skimage.io
import torch
from PIL import Image
from torchvision.io import decode_png

from datamodules.raster import Raster, raster
from doors.writers import WRITERS, write_png


def pixels(height: int, width: int, channels: int, dtype: str) -> np.ndarray:
    """Smooth and noisy parts."""
    generator = np.random.default_rng(0)
    ramp = np.add.outer(np.arange(height) * 7, np.arange(width) * 3)[..., None] * np.ones(channels, int)
    noise = generator.integers(0, np.iinfo(dtype).max, (height, width, channels), endpoint=True)
    return np.where(ramp // 400 % 2, noise, ramp).astype(dtype)


def split(array: np.ndarray, rows: int) -> list[np.ndarray]:
    return [array[top : top + rows] for top in range(0, len(array), rows)]


@pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of TorchVision")
@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize(("height", "width", "rows"), [(1, 1, 1), (97, 61, 10), (1500, 701, 400)])
def test_files_read_back_equal(tmp_path, suffix, channels, dtype, height, width, rows):
    array = pixels(height, width, channels, dtype)
    path = tmp_path / f"a.{suffix}"
    source = Raster(size_px=(height, width), channels=channels, strips=split(array, rows), dtype=dtype)
    WRITERS[suffix](source, path)
    if suffix == "png":  # Pillow reads colour of 16 bits as 8, and TIFF's not at all
        found = decode_png(torch.from_numpy(np.fromfile(path, np.uint8))).permute(1, 2, 0).numpy()
    else:
        found = skimage.io.imread(path)
    if dtype == "uint8" or channels == 1:
        assert np.array_equal(np.asarray(Image.open(path)).reshape(array.shape), array)
    assert found.dtype == dtype
    assert np.array_equal(found.reshape(array.shape), array)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", WRITERS)
def test_memory_does_not_grow_with_the_height(tmp_path, suffix):
    def peak(height: int) -> int:
        def strips() -> Iterator[np.ndarray]:
            yield from (np.full((16, 2000, 3), row % 251, np.uint8) for row in range(0, height, 16))

        tracemalloc.start()
        try:
            source = Raster(size_px=(height, 2000), channels=3, strips=strips())
            WRITERS[suffix](source, tmp_path / "a")
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(160)  # first uses of a library
    assert peak(8000) < 1.1 * peak(800)
    assert peak(8000) < 8 << 20  # of a picture of 46 MiB


def test_a_broken_picture_leaves_no_file_and_keeps_the_old_one(tmp_path):
    def strips() -> Iterator[np.ndarray]:
        yield np.zeros((2, 4, 1), np.uint8)
        raise RuntimeError("out of memory")

    (tmp_path / "a.png").write_bytes(b"old")
    with pytest.raises(RuntimeError):
        write_png(Raster(size_px=(9, 4), channels=1, strips=strips()), tmp_path / "a.png")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize(
    ("strip", "text"),
    [
        (np.zeros((3, 5, 1), np.uint8), r"a strip is uint8 \(3, 5, 1\); expected uint8 \(rows, 4, 1\)"),
        (np.zeros((3, 4, 1), np.uint16), r"a strip is uint16 \(3, 4, 1\); expected uint8"),
        (np.zeros((2, 4, 1), np.uint8), "have 2 rows together; expected 3"),
        (np.zeros((4, 4, 1), np.uint8), "have 4 rows together; expected 3"),
    ],
)
def test_strips_must_fit(tmp_path: Path, strip, text):
    with pytest.raises(ValueError, match=text):
        write_png(Raster(size_px=(3, 4), channels=1, strips=[strip]), tmp_path / "a.png")


def test_tensors_are_one_strip(tmp_path):
    def written(picture: torch.Tensor) -> np.ndarray:
        write_png(raster(picture), tmp_path / "a.png")
        return np.asarray(Image.open(tmp_path / "a.png"))

    image = torch.rand(3, 5, 7)
    assert np.array_equal(written(image), (image * 255).round().byte().permute(1, 2, 0).numpy())
    assert np.array_equal(written((image * 255).byte()), (image * 255).byte().permute(1, 2, 0).numpy())
    assert written(image[:1]).shape == (5, 7)
    ids = torch.tensor([[0, 3], [255, 1]])
    assert written(ids).dtype == np.uint8
    assert np.array_equal(written(ids), ids.numpy())
    assert np.array_equal(written(ids + 1), ids.numpy() + 1)  # 256 needs 16 bits
    assert np.array_equal(written(torch.tensor([[0.0, 1.0, 0.5, 2.0]])), [[0, 65535, 32768, 65535]])


def test_what_is_no_picture_is_said():
    for wrong, text in (
        (torch.zeros(2, 5, 5), r"a result is torch.float32 \(2, 5, 5\); expected a picture"),
        (torch.tensor([[-1]]), "class ids go from -1 to -1; a file holds 0 to 65535"),
        (torch.zeros(3, 5, 5, dtype=torch.int64), r"a result is torch.int64 \(3, 5, 5\); expected a picture"),
    ):
        with pytest.raises(ValueError, match=text):
            raster(wrong)
