from itertools import combinations

import pytest
import torch
from torchvision.models import alexnet

from metrics.per_image import Psnr
from metrics.perceptual import Lpips, LpipsDistance
from metrics.translation import ContentDistance, CyclePsnr, LpipsDiversity


@pytest.fixture
def random_alexnet(empty_hub):
    (empty_hub / "checkpoints").mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(alexnet(weights=None).state_dict(), empty_hub / "checkpoints" / "alexnet-owt-7be5be79.pth")


def images(seed: int) -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def test_cycle_psnr_is_psnr():
    metric, psnr = CyclePsnr(), Psnr()
    metric.update(images(0), images(1))
    psnr.update(images(0), images(1))
    assert metric.compute() == psnr.compute()
    with pytest.raises(ValueError, match="expected one shape"):
        metric.update(images(0), images(1)[..., :32])


def test_content_distance_is_lpips_from_the_input(random_alexnet):
    metric, lpips = ContentDistance(), Lpips()
    metric.update(images(0), images(1))
    lpips.update(images(0), images(1))
    assert metric.compute() == lpips.compute()
    metric.reset()
    metric.update(images(0), images(0))
    assert metric.compute().mean == 0


def test_diversity_is_the_mean_over_pairs_of_samples(random_alexnet):
    samples, metric, lpips = [images(seed) for seed in range(3)], LpipsDiversity(), Lpips()
    metric.update(samples)
    for first, second in combinations(samples, 2):
        lpips.update(first, second)
    assert metric.compute().mean == pytest.approx(lpips.compute().mean, rel=1e-5)
    assert metric.compute().count == 2
    metric.reset()
    metric.update([samples[0]] * 3)
    assert metric.compute().mean == 0


def test_lpips_as_a_loss_is_the_metric_with_gradients_to_the_image_alone(random_alexnet):
    rounded = [(images(seed) * 255).round() / 255 for seed in (0, 1)]
    metric, distance = Lpips(), LpipsDistance()
    metric.update(*rounded)
    image, reference = (part.clone().requires_grad_() for part in rounded)
    found = distance(image, reference.detach())
    torch.testing.assert_close(found.double(), metric.all_values().double(), rtol=1e-4, atol=1e-6)
    found.sum().backward()
    assert image.grad.abs().max() > 0
    assert not any(p.requires_grad for p in distance.parameters())
    assert (found > 0).all()
