import socket

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from metrics.per_image import PicturePairMetric, Psnr, Ssim, Summary, bootstrap_interval, summarize
from metrics.segmentation import PooledOverlap


def pair(count: int = 5, size_px: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(count, 3, size_px, size_px, generator=generator)
    return (target + 0.1 * torch.randn(target.shape, generator=generator)), target


def as_8_bit(images: torch.Tensor) -> np.ndarray:
    return (images.clamp(0, 1) * 255).round().byte().numpy()


def test_psnr_equals_skimage_on_8_bit_pictures():
    pred, target = pair()
    metric = Psnr()
    metric.update(pred, target)
    expected = [peak_signal_noise_ratio(t, p) for p, t in zip(as_8_bit(pred), as_8_bit(target), strict=True)]
    assert metric.compute().mean == pytest.approx(np.mean(expected), rel=1e-5)
    assert metric.compute().std == pytest.approx(np.std(expected, ddof=1), rel=1e-3)


def test_ssim_equals_skimage_with_the_gaussian_window():
    pred, target = pair(3)
    metric = Ssim()
    metric.update(pred, target)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": 0}
    expected = [
        structural_similarity(t, p, data_range=255, **options)
        for p, t in zip(as_8_bit(pred), as_8_bit(target), strict=True)
    ]
    # They treat the five border rows differently.
    assert metric.compute().mean == pytest.approx(np.mean(expected), abs=5e-4)


def test_identical_pictures_have_the_ceiling():
    _, target = pair(2)
    metric = Psnr()
    metric.update(target, target)
    assert metric.compute() == Summary(100.0, 0.0, 2, (100.0, 100.0))


def test_value_does_not_depend_on_the_batching():
    pred, target = pair()
    whole, parts = Psnr(), Psnr()
    whole.update(pred, target)
    for i in range(5):
        parts.update(pred[i : i + 1], target[i : i + 1])
    assert parts.compute().mean == pytest.approx(whole.compute().mean, rel=1e-6)
    assert parts.compute().count == 5
    parts.reset()
    parts.update(pred[:2], target[:2])
    assert parts.compute().count == 2


def test_summary_of_one_and_of_no_image():
    assert summarize(torch.tensor([3.0])) == Summary(3.0, None, 1)
    empty = summarize(torch.empty(0))
    assert np.isnan(empty.mean)
    assert empty.std is None
    assert empty.count == 0


def test_a_value_that_is_not_finite_shows_and_has_no_interval():
    found = summarize(torch.tensor([1.0, torch.nan]))
    assert np.isnan(found.mean)
    assert found.count == 2
    assert found.interval is None


def test_the_interval_is_the_percentile_bootstrap_of_the_mean():
    values = torch.randn(40, generator=torch.Generator().manual_seed(0)) + 3
    low, high = bootstrap_interval(values)
    assert (low, high) == bootstrap_interval(values) == summarize(values).interval
    drawn = np.random.default_rng(1).choice(values.numpy(), (20000, 40)).mean(1)
    np.testing.assert_allclose((low, high), np.percentile(drawn, (2.5, 97.5)), atol=0.03)


def test_the_interval_holds_the_true_mean_about_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    found = [bootstrap_interval(torch.randn(50, generator=generator), num_resamples=400) for _ in range(200)]
    share = np.mean([low <= 0 <= high for low, high in found])
    assert 0.88 <= share <= 0.99


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="expected one shape"):
        Psnr().update(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 17))
    with pytest.raises(ValueError, match="evaluate at a larger size_px"):
        Ssim().update(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8))
    with pytest.raises(NotImplementedError, match="must define per_image"):
        PicturePairMetric().update(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8))


def _worker(rank: int, port: int) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    pred, target = pair()
    metric = Psnr()
    metric.update(pred[rank::2], target[rank::2])
    together, alone = metric.compute(), summarize(metric.per_image(pred, target))
    masks = [(picture[:, 0] > 0.5).long() for picture in (pred, target)]
    pooled, whole = PooledOverlap(), PooledOverlap()
    pooled.update(*(mask[rank::2] for mask in masks))
    gathered = pooled.compute()
    torch.distributed.destroy_process_group()
    whole.update(*masks)
    assert gathered == whole.compute()
    assert together.count == 5
    assert abs(together.mean - alone.mean) < 1e-4


@pytest.mark.slow
def test_two_processes_see_all_images():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_worker, args=(port,), nprocs=2)
