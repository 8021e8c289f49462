"""20,000 damaged pictures of all formats: the reader's own error or a picture, in time, and no memory is kept."""

import io
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from datamodules.decode import HEIF, UnreadableImage, check_image, decode_image, pixels_key
from tests.datamodules.broken_files import encoded, frames, noise
from tests.datamodules.icc import ADOBE_PRIMARIES, cmyk_profile, grey_profile, rgb_profile
from tests.datamodules.odd_files import exif

NUM, LIMIT, LONGEST_S, WARM_UP, GROWTH_MIB = 20_000, 1_000_000, 2.0, 4_000, 48


def seeds() -> dict[str, bytes]:
    """Small whole files: 12 formats, most with a profile or EXIF, and the ways in which some are packed."""
    rgb, adobe = Image.fromarray(noise(40, 56)), rgb_profile(ADOBE_PRIMARIES, 2.2)
    grey, deep = rgb.convert("L"), Image.fromarray(noise(40, 56)[..., 0].astype(np.uint16) * 257)
    files = {
        "rgb.png": encoded(rgb, "PNG", icc_profile=adobe, exif=exif(6)),
        "palette.png": encoded(rgb.quantize(16), "PNG", transparency=0),
        "deep.png": encoded(deep, "PNG", icc_profile=grey_profile(1.8)),
        "rgb.jpg": encoded(rgb, "JPEG", icc_profile=adobe, exif=exif(6)),
        "progressive.jpg": encoded(rgb, "JPEG", progressive=True),
        "cmyk.jpg": encoded(rgb.convert("CMYK"), "JPEG", icc_profile=cmyk_profile()),
        "two.mpo": encoded(rgb, "MPO", save_all=True, append_images=[rgb]),
        "lossy.webp": encoded(rgb, "WEBP", exif=exif(6), icc_profile=adobe),
        "lossless.webp": encoded(rgb.convert("RGBA"), "WEBP", lossless=True),
        "frames.webp": frames("WEBP", 3),
        "frames.gif": frames("GIF", 3),
        "rgb.bmp": encoded(rgb, "BMP"),
        "rgb.avif": encoded(rgb, "AVIF", exif=exif(6), icc_profile=adobe),
        "rgb.jp2": encoded(rgb, "JPEG2000"),
        "rgb.ppm": encoded(rgb, "PPM"),
        "rgb.pcx": encoded(rgb, "PCX"),
        "rgb.sgi": encoded(rgb, "SGI", rle=True),
        "rgb.tga": encoded(rgb, "TGA", compression="tga_rle"),
        "float.tif": encoded(Image.fromarray(np.asarray(grey, np.float32)), "TIFF"),
        "deep.tif": encoded(deep, "TIFF", icc_profile=grey_profile(1.8), tiffinfo={0x0112: 6}),
    }
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        files[f"{compression}.tif"] = encoded(rgb, "TIFF", compression=compression, icc_profile=adobe)
    return files | ({"rgb.heic": encoded(rgb, "HEIF")} if HEIF else {})


def mutated(content: bytes, random: np.random.Generator) -> bytes:
    """The content with some bytes changed, half of the time near its start, cut, or with a part twice or of zeros."""
    data = bytearray(content)
    size = len(data)
    reach = size if random.random() < 0.5 else min(size, 200)
    kind = random.integers(6)
    if kind < 3:
        for place in random.integers(reach, size=random.integers(1, 12)):
            data[place] = random.choice([0, 1, 0x7F, 0x80, 0xFF, random.integers(256)])
    start, stop = sorted(random.integers(reach, size=2))
    if kind == 3:
        del data[random.integers(size) :]
    elif kind == 4:
        data[start:start] = data[start:stop]
    elif kind == 5:
        data[start:stop] = bytes(stop - start)
    return bytes(data)


def read(path: Path) -> tuple[tuple[int, int] | None, tuple[int, int] | None, float]:
    """The size that the check gives, that of the decoded picture (None if it is refused), and the seconds taken."""
    start, checked, decoded = time.perf_counter(), None, None
    with suppress(UnreadableImage):
        checked = check_image(path, max_pixels=LIMIT)
    with suppress(UnreadableImage):
        image = decode_image(path, LIMIT)
        decoded = (image.shape[-2], image.shape[-1])
    pixels_key(path, LIMIT)
    return checked, decoded, time.perf_counter() - start


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings(
    "ignore::UserWarning"
)  # pytest puts its own filters in place of datamodules.decode's
def test_damaged_pictures_raise_the_readers_own_error_in_time_and_keep_no_memory(tmp_path: Path) -> None:
    random, files, process = np.random.default_rng(0), seeds(), psutil.Process()
    assert len({Image.open(io.BytesIO(content)).format for content in files.values()}) >= 12
    num_read, slowest, at_warm_up = 0, 0.0, 0
    for number in range(NUM):
        name = list(files)[number % len(files)]
        path = tmp_path / f"{number % 64}_{name}"
        path.write_bytes(mutated(files[name], random))
        checked, decoded, seconds = read(path)
        if seconds > LONGEST_S:  # perhaps the machine was busy elsewhere
            seconds = read(path)[2]
        assert seconds < LONGEST_S, (number, name)
        slowest = max(slowest, seconds)
        if decoded is not None:
            assert checked == decoded, (number, name)
            num_read += 1
        if number == WARM_UP:
            at_warm_up = process.memory_info().rss
    growth = (process.memory_info().rss - at_warm_up) / 2**20
    print(f"{num_read} of {NUM} read, slowest {slowest:.2f} s, {growth:.0f} MiB more")  # noqa: T201
    assert growth < GROWTH_MIB
    assert NUM / 10 < num_read < NUM * 9 / 10
