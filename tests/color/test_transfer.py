import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from kornia.filters import guided_blur
from skimage import data

from color.lab import lab_to_rgb, lightness, rgb_to_lab
from color.transfer import (
    _linear_coefficients,
    guide_size,
    transfer_chroma,
    transfer_chroma_exact,
)


def photo_and_small(size_px: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    photo = torch.from_numpy(data.coffee()).permute(2, 0, 1).contiguous()
    size = guide_size(tuple(photo.shape[-2:]), size_px)
    return photo, F.interpolate(photo[None] / 255.0, size=size, mode="bilinear", antialias=True)[0]


def lab_of(picture: torch.Tensor) -> torch.Tensor:
    return rgb_to_lab(picture[None].double() / 255)[0]


def test_lightness_of_the_photo_is_kept_after_8_bit():
    photo, small = photo_and_small()
    result = transfer_chroma(photo, small)
    assert result.shape == photo.shape
    assert result.dtype == torch.uint8
    assert (lab_of(result)[0] - lab_of(photo)[0]).abs().mean() <= 0.3


def test_lightness_is_kept_whatever_the_chroma():
    photo, small = photo_and_small()
    noise = torch.rand(small.shape, generator=torch.Generator().manual_seed(0))
    assert (lab_of(transfer_chroma(photo, noise))[0] - lab_of(photo)[0]).abs().mean() <= 0.3


@pytest.mark.parametrize("size_px", [64, 400])
def test_strips_equal_the_whole(size_px):
    photo, small = photo_and_small(size_px)
    whole = transfer_chroma(photo, small, strip_px=10_000)
    for strip_px in (1, 37, 256):
        assert torch.equal(transfer_chroma(photo, small, strip_px=strip_px), whole)


def test_equal_size_takes_ab_over_exactly():
    photo, _ = photo_and_small()
    grey = (lightness(photo[None] / 255.0) * 0 + 0.5).expand(1, 3, -1, -1)[0]
    assert torch.equal(transfer_chroma(photo, photo / 255.0), photo)
    back = lab_of(transfer_chroma(photo, grey))
    assert back[1:].abs().max() < 1.0


def test_real_photo_beats_bilinear_chroma():
    photo, small = photo_and_small()
    bilinear = F.interpolate(small[None], size=photo.shape[-2:], mode="bilinear", align_corners=False)[0]
    truth = lab_of(photo)[1:]
    error_guided = (lab_of(transfer_chroma(photo, small))[1:] - truth).norm(dim=0).mean()
    error_bilinear = (lab_of(transfer_chroma(photo, bilinear))[1:] - truth).norm(dim=0).mean()
    assert error_guided < 0.93 * error_bilinear


def test_two_colours_do_not_bleed_over_their_edge():
    lab = torch.zeros(1, 3, 256, 256)
    right = (torch.arange(256) + 0.3 * torch.arange(256)[:, None]) > 165
    lab[0, :, ~right] = torch.tensor([60.0, 30.0, 30.0])[:, None]
    lab[0, :, right] = torch.tensor([45.0, -8.0, -25.0])[:, None]
    image = lab_to_rgb(lab)[0]
    photo = (image * 255).round().byte()
    small = F.interpolate(image[None], size=(32, 32), mode="bilinear", antialias=True)[0]
    bilinear = F.interpolate(small[None], size=(256, 256), mode="bilinear")[0]
    guided = (lab_of(transfer_chroma(photo, small))[1:] - lab[0, 1:]).norm(dim=0)
    plain = (lab_of(transfer_chroma(photo, bilinear))[1:] - lab[0, 1:]).norm(dim=0)
    near = (
        F.max_pool2d(right[None].float(), 17, 1, 8)[0] + F.max_pool2d(1 - right[None].float(), 17, 1, 8)[0]
        > 1.5
    )
    assert guided[near].mean() < 0.35 * plain[near].mean()
    assert guided[~near].mean() < 1.0


def test_slope_is_that_of_the_guided_filter():
    generator = torch.Generator().manual_seed(0)
    guide = torch.rand(1, 1, 40, 50, generator=generator, dtype=torch.float64)
    chroma = 50 * torch.randn(1, 2, 40, 50, generator=generator, dtype=torch.float64)
    slope, offset = _linear_coefficients(guide, chroma, radius=3, eps=0.01).chunk(2, dim=1)
    torch.testing.assert_close(slope * guide + offset, chroma)
    # kornia's filter is slope * guide + mean offset; shifting input by -slope0 * guide isolates the slope.
    reference = guided_blur(guide, chroma, kernel_size=7, eps=0.01)
    means = F.avg_pool2d(torch.cat([guide, chroma], 1), 7, 1, 3, count_include_pad=False)
    variance = F.avg_pool2d(guide**2, 7, 1, 3, count_include_pad=False) - means[:, :1] ** 2
    covariance = F.avg_pool2d(guide * chroma, 7, 1, 3, count_include_pad=False) - means[:, :1] * means[:, 1:]
    local = means[:, 1:] - covariance / (variance + 0.01) * means[:, :1]
    mine = slope * guide + F.avg_pool2d(local, 7, 1, 3, count_include_pad=False)
    inner = (..., slice(6, -6), slice(6, -6))
    torch.testing.assert_close(mine[inner], reference[inner], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (2000, 3)])
@pytest.mark.parametrize("small", [(1, 1), (16, 16), (64, 48)])
def test_any_size_and_aspect_works(size, small):
    generator = torch.Generator().manual_seed(0)
    photo = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
    result = transfer_chroma(photo, torch.rand(3, *small, generator=generator))
    assert result.shape == photo.shape


def test_exact_transfer_keeps_lightness_and_ab():
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
    torch.testing.assert_close(transfer_chroma_exact(lightness(image), image), image, rtol=0, atol=1e-4)
    other = lightness(image.flip(-1))
    torch.testing.assert_close(lightness(transfer_chroma_exact(other, image)), other, rtol=0, atol=5e-4)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_24_megapixels_take_less_than_2_gib():
    script = (
        "import resource, torch\n"
        "from color.transfer import transfer_chroma\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20\n"
        "photo = torch.randint(0, 256, (3, 4000, 6000), dtype=torch.uint8)\n"
        "transfer_chroma(photo[:, :64, :64].contiguous(), torch.rand(3, 16, 16))\n"
        "before = peak()\n"
        "transfer_chroma(photo, torch.rand(3, 512, 768))\n"
        "import sys; sys.stdout.write(str(peak() - before))\n"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(run.stdout) < 2.0
