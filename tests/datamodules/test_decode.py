import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.decode import UnreadableImage, check_image, decode_image
from datamodules.view import View, resize_short_side
from tests.datamodules.broken_files import noise
from tests.datamodules.odd_files import refused, usable

LIMIT = 1_000_000


def rgb_array(height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def decoded(path: Path) -> np.ndarray:
    image = decode_image(path, LIMIT)
    assert image.dtype == torch.uint8
    assert image.shape[0] == 3
    return image.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    rgb = rgb_array()
    upright_to_stored = {
        1: rgb,
        2: rgb[:, ::-1],
        3: rgb[::-1, ::-1],
        4: rgb[::-1],
        5: rgb.transpose(1, 0, 2),
        6: np.rot90(rgb, 1),
        7: np.rot90(rgb, 2).transpose(1, 0, 2),
        8: np.rot90(rgb, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    Image.fromarray(np.ascontiguousarray(upright_to_stored[orientation])).save(path, exif=exif)
    np.testing.assert_array_equal(decoded(path), rgb)


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    rgba = np.zeros((2, 2, 4), dtype=np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    rgba[1, 1] = (0, 0, 0, 51)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    result = decoded(tmp_path / "rgba.png")
    assert result[0, 0].tolist() == [10, 20, 30]
    assert result[0, 1].tolist() == [255, 255, 255]
    assert result[1, 1].tolist() == [204, 204, 204]

    Image.fromarray(np.array([[[100, 255], [100, 0]]], dtype=np.uint8), "LA").save(tmp_path / "la.png")
    assert decoded(tmp_path / "la.png")[0].tolist() == [[100] * 3, [255] * 3]

    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 0, 0, 0, 200, 0])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=1)
    assert decoded(tmp_path / "p.png")[0].tolist() == [[200, 0, 0], [255, 255, 255]]


def test_grey_one_bit_and_16_bit(tmp_path: Path) -> None:
    grey = rgb_array()[..., 0]
    Image.fromarray(grey).save(tmp_path / "l.png")
    np.testing.assert_array_equal(decoded(tmp_path / "l.png"), np.repeat(grey[..., None], 3, axis=2))

    Image.fromarray(grey > 127).save(tmp_path / "1.png")
    np.testing.assert_array_equal(decoded(tmp_path / "1.png")[..., 0], np.where(grey > 127, 255, 0))

    for suffix in ("png", "tif"):
        Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / f"16.{suffix}")
        np.testing.assert_array_equal(decoded(tmp_path / f"16.{suffix}")[..., 1], grey)


def test_16_bit_rgb_png(tmp_path: Path) -> None:
    rgb = rgb_array()
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).astype(">u2").tobytes() for row in rgb)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 8, 6, 16, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    np.testing.assert_array_equal(decoded(tmp_path / "a.png"), rgb)


def test_cmyk(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    np.testing.assert_allclose(decoded(tmp_path / "a.jpg")[8, 8], [255, 0, 0], atol=6)


def test_one_pixel_and_small_images_are_enlarged(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (9, 8, 7)).save(tmp_path / "a.png")
    image = decode_image(tmp_path / "a.png", LIMIT)
    assert torch.equal(
        center_crop(image, 16), torch.tensor([9, 8, 7], dtype=torch.uint8)[:, None, None].expand(3, 16, 16)
    )
    assert resize_short_side(image, 5).shape == (3, 5, 5)


def center_crop(image: torch.Tensor, size_px: int) -> torch.Tensor:
    size = (image.shape[-2], image.shape[-1])
    return View.square(size, size_px=size_px).image(image)


def test_center_crop_takes_the_middle_and_is_antialiased() -> None:
    stripes = torch.zeros(3, 64, 96, dtype=torch.uint8)
    stripes[..., 17:80:2] = 255
    # Without antialiasing, every eighth column is sampled and the stripes stay black or white.
    assert (center_crop(stripes, 8).float() - 127.5).abs()[..., 1:-1].max() < 24
    wide = torch.zeros(3, 4, 12, dtype=torch.uint8)
    wide[..., 4:8] = 200
    assert center_crop(wide, 4).unique().tolist() == [200]


def test_reduced_jpeg_decoding_matches_the_full_one(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 512, dtype=np.uint8)
    rgb = np.stack(
        [np.tile(ramp, (384, 1)), np.tile(ramp[:384, None], (1, 512)), np.full((384, 512), 99)], axis=2
    )
    Image.fromarray(rgb.astype(np.uint8)).save(tmp_path / "a.jpg", quality=95)
    reduced = decode_image(tmp_path / "a.jpg", LIMIT, min_side_px=64)
    assert reduced.shape == (3, 96, 128)
    full = decode_image(tmp_path / "a.jpg", LIMIT)
    assert (center_crop(reduced, 32).int() - center_crop(full, 32).int()).abs().max() <= 3


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    Image.new("1", (3000, 2000)).save(tmp_path / "bomb.png")
    for read in (lambda path: decode_image(path, LIMIT), lambda path: check_image(path, max_pixels=LIMIT)):
        with pytest.raises(UnreadableImage, match=" pixels are more than the 1000000"):
            read(tmp_path / "bomb.png")


def test_broken_files_say_why(tmp_path: Path) -> None:
    Image.fromarray(rgb_array(64, 64)).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    reasons = {"truncated.jpg": "truncated", "text.png": "identify", "empty.png": "it is empty"}
    reasons |= {"folder.png": "no regular file", "missing.png": "No such file"}
    for name, reason in reasons.items():
        with pytest.raises(UnreadableImage, match=reason) as caught:
            decode_image(tmp_path / name, LIMIT)
        assert caught.value.path == tmp_path / name
    with pytest.raises(UnreadableImage, match="truncated"):  # seen without decoding
        check_image(tmp_path / "truncated.jpg", max_pixels=LIMIT)


@pytest.mark.parametrize("name", usable())
def test_odd_files_are_read_upright_and_checked_as_they_are_decoded(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(usable()[name])
    assert check_image(tmp_path / name, max_pixels=LIMIT) == (24, 32)
    image = decoded(tmp_path / name).astype(float)
    right = noise(24, 32).astype(float)
    turned_or_plain = "profile" in name or not any(
        word in name for word in ("adobe", "cmyk", "gamma", "grey")
    )
    if turned_or_plain and not name.endswith((".gif", ".tif")):
        assert np.corrcoef(image.ravel(), right.ravel())[0, 1] > 0.5  # 0.0 if it lies or is mirrored


@pytest.mark.parametrize("name", refused())
def test_odd_files_are_refused_by_both_for_the_same_reason(tmp_path: Path, name: str) -> None:
    content, reason = refused()[name]
    (tmp_path / name).write_bytes(content)
    for read in (lambda path: decode_image(path, LIMIT), lambda path: check_image(path, max_pixels=LIMIT)):
        with pytest.raises(UnreadableImage) as caught:
            read(tmp_path / name)
        assert reason in caught.value.reason


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_turned_grey_tiffs_are_turned_once(tmp_path: Path, compression: str, dtype: type) -> None:
    grey = rgb_array()[..., 0]
    stored = Image.fromarray(np.rot90(grey, 1).astype(dtype) * (257 if dtype is np.uint16 else 1))
    stored.save(tmp_path / "a.tif", compression=compression, tiffinfo={0x0112: 6})
    assert check_image(tmp_path / "a.tif", max_pixels=LIMIT) == grey.shape
    np.testing.assert_array_equal(decoded(tmp_path / "a.tif")[..., 0], grey)


@pytest.mark.parametrize(("height", "width"), [(800, 30_000), (3000, 1), (1, 3000), (1, 1)])
def test_extreme_sizes_are_kept(tmp_path: Path, height: int, width: int) -> None:
    ramp = (np.arange(height * width, dtype=np.uint32) % 251).astype(np.uint8).reshape(height, width)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    assert check_image(tmp_path / "a.png", max_pixels=30_000_000) == (height, width)
    image = decode_image(tmp_path / "a.png", 30_000_000)
    np.testing.assert_array_equal(image[1].numpy(), ramp)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (5, 1)])
def test_a_line_of_pixels_may_be_turned(tmp_path: Path, height: int, width: int, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (width, height), (9, 8, 7)).save(tmp_path / "a.png", exif=exif)
    size = (height, width) if orientation < 5 else (width, height)
    assert check_image(tmp_path / "a.png", max_pixels=LIMIT) == size
    assert tuple(decode_image(tmp_path / "a.png", LIMIT).shape) == (3, *size)


def test_a_video_of_megabytes_behind_a_jpeg_is_passed_over_quickly(tmp_path: Path) -> None:
    content = usable()["adobe.jpg"]
    (tmp_path / "a.jpg").write_bytes(content + bytes(8_000_000))
    start = time.perf_counter()
    assert check_image(tmp_path / "a.jpg", max_pixels=LIMIT) == (24, 32)
    assert time.perf_counter() - start < 1.0
