"""Colour profiles and grey of unusual numbers: what littlecms says, and what is left as it is."""

import io
import logging
import threading
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms
from skimage.color import rgb2lab

from datamodules.annotations import annotated
from datamodules.decode import UnreadableImage, check_image, decode_image, decode_mask, decode_rgba
from datamodules.photo_dataset import PhotoDataset, PhotoTransform
from tests.datamodules.broken_files import tiff
from tests.datamodules.icc import (
    ADOBE_PRIMARIES,
    P3_PRIMARIES,
    SRGB_PRIMARIES,
    cmyk_profile,
    grey_profile,
    rgb_profile,
    srgb_curve,
)
from tests.datamodules.odd_files import UNWRITABLE, exif

LIMIT = 1_000_000
ADOBE = rgb_profile(ADOBE_PRIMARIES, 2.2)


def colors() -> np.ndarray:
    """A lattice of all colours, uint8 (64, 64, 3)."""
    levels = np.linspace(0, 255, 16).round().astype(np.uint8)
    return np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(64, 64, 3)


def decoded(path: Path) -> np.ndarray:
    check_image(path, max_pixels=LIMIT)
    return decode_image(path, LIMIT).permute(1, 2, 0).numpy()


def by_littlecms(image: Image.Image, profile: bytes) -> np.ndarray:
    result = ImageCms.profileToProfile(
        image,
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    return np.asarray(result)


def lightness_error(image: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(rgb2lab(image)[..., 0] - rgb2lab(expected)[..., 0]).mean())


RGB = Image.fromarray(colors())
GREY = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (8, 1)))
PROFILED = {
    "adobe.png": (RGB, ADOBE),
    "adobe.jpg": (RGB, ADOBE),
    "adobe.tif": (RGB, ADOBE),
    "p3.webp": (RGB, rgb_profile(P3_PRIMARIES, 2.2)),
    "p3.avif": (RGB, rgb_profile(P3_PRIMARIES, 2.2)),
    "linear.png": (RGB, rgb_profile(SRGB_PRIMARIES, 1.0)),
    "grey_1.8.png": (GREY, grey_profile(1.8)),
    "grey_1.8.jpg": (GREY, grey_profile(1.8)),
    "grey_of_rgb.png": (GREY, ADOBE),
    "cmyk.tif": (RGB.convert("CMYK"), cmyk_profile()),
    "cmyk.jpg": (RGB.convert("CMYK"), cmyk_profile()),
    "palette.png": (RGB.quantize(64), ADOBE),
}


@pytest.mark.parametrize("name", PROFILED)
def test_an_embedded_profile_is_brought_to_srgb_as_littlecms_does(tmp_path: Path, name: str) -> None:
    image, profile = PROFILED[name]
    image.save(tmp_path / name, icc_profile=profile, **({"lossless": True} if name.endswith("webp") else {}))
    with Image.open(tmp_path / name) as stored:
        assert stored.info["icc_profile"] == profile
        plain = stored.convert("RGB")
        ready = stored.copy() if stored.mode == "CMYK" or "1.8" in name else plain
    expected = by_littlecms(ready, profile)
    assert lightness_error(decoded(tmp_path / name), expected) < 0.05
    assert lightness_error(np.asarray(plain), expected) > 0.6  # of the picture without its profile


def test_deep_grey_keeps_its_depth_until_its_profile_is_applied(tmp_path: Path) -> None:
    values = np.tile(np.arange(0, 65536, 64, dtype=np.uint16), (2, 1))
    for name in ("a.png", "a.tif"):
        Image.fromarray(values).save(tmp_path / name, icc_profile=grey_profile(1.0))
        linear = values / 65535.0
        right = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
        assert np.abs(decoded(tmp_path / name)[..., 1] - right).max() < 1.0


def test_transparent_colours_are_converted_before_they_are_laid_over_white(tmp_path: Path) -> None:
    half = RGB.copy()
    half.putalpha(128)
    half.save(tmp_path / "a.png", icc_profile=ADOBE)
    converted = by_littlecms(RGB, ADOBE)
    over_white = converted * (128 / 255) + 255 * (127 / 255)
    np.testing.assert_allclose(decoded(tmp_path / "a.png"), over_white, atol=1.5)
    rgba = decode_rgba(tmp_path / "a.png", LIMIT).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(rgba[..., :3], converted)
    assert np.unique(rgba[..., 3]).tolist() == [128]


@pytest.mark.parametrize(
    "profile",
    [
        None,
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        rgb_profile(SRGB_PRIMARIES, 0.0, curve=srgb_curve(1024)),
        rgb_profile(SRGB_PRIMARIES, 0.0, curve=srgb_curve(42)),
    ],
    ids=["none", "littlecms", "table of 1024", "table of 42"],
)
@pytest.mark.parametrize("image", [RGB, GREY], ids=["rgb", "grey"])
def test_srgb_and_unprofiled_pictures_stay_bit_for_bit(
    tmp_path: Path, image: Image.Image, profile: bytes | None
) -> None:
    image.save(tmp_path / "a.png", icc_profile=profile)
    np.testing.assert_array_equal(decoded(tmp_path / "a.png"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("profile", "reason"),
    [
        (b"no profile", "cannot open profile"),
        (ADOBE[:300], "cannot build transform"),
        (grey_profile(1.8), "it is for GRAY and the picture is RGB"),
        (cmyk_profile(), "it is for CMYK and the picture is RGB"),
    ],
)
def test_a_profile_that_cannot_be_used_is_left_aside_with_one_warning(
    tmp_path: Path, profile: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.png", "b.png"):
        RGB.save(tmp_path / name, icc_profile=profile)
        for _ in range(2):
            np.testing.assert_array_equal(decoded(tmp_path / name), colors())
    messages = [record.message for record in caplog.records]
    assert len(messages) == 1, messages
    assert f"the colour profile of '{tmp_path / 'a.png'}' cannot be used: " in messages[0]
    assert reason in messages[0]


def test_a_jpeg_that_lacks_a_part_of_its_profile_is_read_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    RGB.save(tmp_path / "a.jpg", icc_profile=ADOBE)
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content.replace(b"ICC_PROFILE\0\1\1", b"ICC_PROFILE\0\1\2"))
    decoded(tmp_path / "a.jpg")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_masks_keep_their_values_whatever_their_profile_says(tmp_path: Path) -> None:
    GREY.save(tmp_path / "a.png", icc_profile=grey_profile(1.8))
    np.testing.assert_array_equal(decode_mask(tmp_path / "a.png", LIMIT), np.asarray(GREY))


def test_threads_share_a_transform(tmp_path: Path) -> None:
    RGB.save(tmp_path / "a.png", icc_profile=ADOBE)
    expected, results = decoded(tmp_path / "a.png"), []
    threads = [threading.Thread(target=lambda: results.append(decoded(tmp_path / "a.png"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all(np.array_equal(result, expected) for result in results)


def dataset_of(*paths: Path) -> PhotoDataset:
    return PhotoDataset(paths, names=[path.name for path in paths], transform=PhotoTransform(size_px=8))


def test_cache_keys_change_for_the_files_whose_pixels_do_and_for_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    srgb_bytes = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    RGB.save(tmp_path / "plain.png")
    RGB.save(tmp_path / "srgb.jpg", icc_profile=srgb_bytes)
    RGB.save(tmp_path / "broken_profile.png", icc_profile=b"no profile")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "16.tif")
    RGB.save(tmp_path / "turned.jpg", exif=exif(6))
    RGB.save(tmp_path / "adobe.png", icc_profile=ADOBE)
    GREY.save(tmp_path / "grey.tif", icc_profile=grey_profile(1.8))
    tifffile.imwrite(tmp_path / "white_is_zero.tif", np.ones((4, 4), np.uint16), photometric="miniswhite")
    RGB.save(tmp_path / "turned_rgb.tif", tiffinfo={0x0112: 6})
    GREY.save(tmp_path / "turned_grey.tif", tiffinfo={0x0112: 6})
    RGB.save(tmp_path / "unwritable.jpg", exif=exif(6, entry=UNWRITABLE["rational"]))
    paths = sorted(tmp_path.iterdir())
    states = dataset_of(*paths).states()
    monkeypatch.setattr("datamodules.keyed_dataset.pixels_key", lambda path, max_pixels: "")
    old = dataset_of(*paths).states()
    changed = {path.name for path, a, b in zip(paths, old, states, strict=True) if a != b}
    assert changed == {
        "adobe.png",  # profile
        "grey.tif",
        "white_is_zero.tif",  # numbers
        "turned_grey.tif",  # scrambled before
        "unwritable.jpg",  # unreadable before
    }


def test_annotations_of_a_profiled_file_are_computed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RGB.save(tmp_path / "plain.png")
    RGB.save(tmp_path / "adobe.png", icc_profile=ADOBE)
    data, seen = dataset_of(tmp_path / "plain.png", tmp_path / "adobe.png"), []

    def annotate(index: int) -> int:
        seen.append(index)
        return index

    def run() -> list[int]:
        return annotated(data, annotate, settings="", unreadable=-1, cache_dir=str(tmp_path / "cache"))

    with monkeypatch.context() as patch:
        patch.setattr("datamodules.annotations.pixels_key", lambda path, max_pixels: "")
        run()
    assert run() == run() == [0, 1]
    assert seen == [0, 1, 1]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_grey_tiffs_by_photometric_and_type(
    tmp_path: Path, dtype: type, photometric: str, compression: str | None
) -> None:
    grey = np.arange(0, 256, dtype=np.uint8).reshape(16, 16)
    values = (
        (grey / 255.0).astype(dtype)
        if dtype is np.float32
        else grey.astype(dtype) * (257 if dtype is np.uint16 else 1)
    )
    tifffile.imwrite(tmp_path / "a.tif", values, photometric=photometric, compression=compression)
    right = grey if photometric == "minisblack" else 255 - grey
    np.testing.assert_array_equal(decoded(tmp_path / "a.tif")[..., 0], right)


def test_12_bit_grey_tiffs(tmp_path: Path) -> None:
    packed = bytes([0xFF, 0xF0, 0x00, 0x80, 0x04, 0x00])  # 4095, 0, 2048, 1024
    entries = [(256, 3, 1, 4), (257, 3, 1, 1), (258, 3, 1, 12), (259, 3, 1, 1), (262, 3, 1, 1)]
    entries += [(273, 4, 1, 8), (277, 3, 1, 1), (278, 3, 1, 1), (279, 4, 1, len(packed))]
    (tmp_path / "a.tif").write_bytes(tiff(entries, packed))
    assert decoded(tmp_path / "a.tif")[0, :, 0].tolist() == [255, 0, 128, 64]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.full((4, 4), 40_000, np.uint32), "a TIFF of unsigned 32-bit integers; store it as 8 or 16 bits"),
        (np.full((4, 4), 40_000, np.int32), "a TIFF of signed 32-bit integers"),
        (np.full((4, 4), -5, np.int16), "a TIFF of signed 16-bit integers"),
        (np.full((4, 4), -5, np.int8), "a TIFF of signed 8-bit integers"),
        (
            np.full((4, 4), 40_000, np.float32),
            "its floats are from 0 to 40000; expected grey of 0 to 1 or of 0 to 255",
        ),
        (np.full((4, 4), -3, np.float32), "its floats are from -3 to 0"),
        (np.full((4, 4), np.inf, np.float32), "its floats are from 0 to inf"),
        (np.ones((4, 4), np.float64), "a TIFF of numbers or channels that cannot be read"),
        (np.ones((4, 4, 3), np.float32), "a TIFF of numbers or channels that cannot be read"),
    ],
    ids=lambda value: str(getattr(value, "dtype", "")),
)
def test_numbers_without_a_known_white_are_refused_by_name_before_training(
    tmp_path: Path, values: np.ndarray, reason: str
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb" if values.ndim == 3 else "minisblack")
    for read in (lambda path: decode_image(path, LIMIT), lambda path: check_image(path, max_pixels=LIMIT)):
        with pytest.raises(UnreadableImage) as caught:
            read(tmp_path / "a.tif")
        assert reason in caught.value.reason


def test_masks_of_wide_numbers_are_still_ids(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 2, 70_000]], np.int32)
    tifffile.imwrite(tmp_path / "a.tif", ids)
    assert torch.equal(decode_mask(tmp_path / "a.tif", LIMIT), torch.from_numpy(ids))


def test_floats_and_nan(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 0.5, 1.0, np.nan]], np.float32)).save(tmp_path / "a.tif")
    assert decoded(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 128, 255, 0]
    Image.fromarray(np.array([[0.0, 51.0, 255.0]], np.float32)).save(tmp_path / "a.tif")
    assert decoded(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 51, 255]
