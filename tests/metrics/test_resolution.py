import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from metrics.resolution import LowResolutionPsnr, PsnrY, SelfSsim, SsimY, luma, resize_bicubic


def photos() -> torch.Tensor:
    pictures = [torch.from_numpy(getattr(data, name)()[:96, :120].copy()) for name in ("astronaut", "coffee")]
    return torch.stack(pictures).permute(0, 3, 1, 2) / 255.0


def noisy() -> torch.Tensor:
    noise = torch.randn(2, 3, 96, 120, generator=torch.Generator().manual_seed(0))
    return (photos() + 0.05 * noise).clamp(0, 1)


def skimage_luma(image: torch.Tensor) -> np.ndarray:
    return rgb2ycbcr((image * 255).round().double().permute(0, 2, 3, 1).numpy() / 255)[..., 0]


def test_luma_equals_skimage():
    np.testing.assert_allclose(luma(photos())[:, 0], skimage_luma(photos()), atol=1e-3)
    assert luma(torch.ones(1, 3, 1, 1)).item() == pytest.approx(235, abs=1e-4)


def test_psnr_and_ssim_of_luma_equal_skimage():
    psnr, ssim = PsnrY(), SsimY()
    for metric in (psnr, ssim):
        metric.update(noisy(), photos())
    pairs = list(zip(skimage_luma(photos()), skimage_luma(noisy()), strict=True))
    expected = [peak_signal_noise_ratio(t, p, data_range=255) for t, p in pairs]
    np.testing.assert_allclose(psnr.all_values(), expected, rtol=1e-5)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    # scikit-image leaves out a border of five pixels, which torchmetrics mirrors; its map has the border too.
    expected = [structural_similarity(t, p, full=True, **options)[1].mean() for t, p in pairs]
    np.testing.assert_allclose(ssim.all_values(), expected, atol=5e-4)


def test_identical_pictures_have_the_ceiling():
    metric = PsnrY()
    metric.update(photos(), photos())
    assert metric.compute().mean == 100


@pytest.mark.parametrize("size_px", [(24, 30), (37, 50), (200, 150)])
def test_bicubic_equals_pillow(size_px):
    found = resize_bicubic(photos(), size_px).mul(255).round()
    for image, picture in zip(found, photos(), strict=True):
        given = Image.fromarray((picture * 255).byte().permute(1, 2, 0).numpy())
        expected = np.asarray(given.resize(size_px[::-1], Image.Resampling.BICUBIC)).transpose(2, 0, 1)
        assert np.abs(image.numpy() - expected).max() <= 2  # pillow rounds between its two passes


def test_a_result_that_shrinks_to_the_small_picture_is_consistent():
    low = resize_bicubic(photos(), (24, 30))
    right, wrong = LowResolutionPsnr(), LowResolutionPsnr()
    right.update(photos(), low)
    wrong.update(photos() * 0.9, low)
    assert right.compute().mean == 100
    assert wrong.compute().mean < 35


def test_self_ssim_is_one_for_shrunk_copies_and_does_not_depend_on_which_is_larger():
    metric = SelfSsim()
    metric.update(photos(), [resize_bicubic(photos(), (48, 60)), resize_bicubic(photos(), (24, 30))])
    assert metric.compute().mean == pytest.approx(1, abs=1e-6)
    small = resize_bicubic(noisy(), (48, 60))
    one, other = SelfSsim(), SelfSsim()
    one.update(photos(), [small])
    other.update(small, [photos()])
    assert one.compute() == other.compute()
    assert one.compute().mean < 0.999


def test_pictures_smaller_than_the_window_are_refused():
    with pytest.raises(ValueError, match="expected at least 11"):
        SsimY().update(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8))
