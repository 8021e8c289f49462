"""Feature distance and patch discriminator."""

import pytest
import torch
from torch.nn import functional as F

from networks.discriminator import PatchDiscriminator
from networks.perceptual import FeatureDistance
from networks.squeezenet import SqueezeNetFeatures


def distance() -> FeatureDistance:
    torch.manual_seed(0)
    return FeatureDistance(SqueezeNetFeatures())


def test_distance_is_zero_for_equal_images_and_grows_with_noise():
    image = torch.rand(2, 3, 32, 32)
    measure = distance()
    assert measure(image, image).tolist() == [0.0, 0.0]
    noise = torch.randn_like(image)
    steps = [measure((image + s * noise).clamp(0, 1), image).mean() for s in (0.02, 0.1, 0.4)]
    assert 0 < steps[0] < steps[1] < steps[2]


def test_distance_is_the_formula_of_zhang_2018():
    measure = distance()
    first, second = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    expected = torch.zeros(2)
    for ours, theirs in zip(measure.backbone(first), measure.backbone(second), strict=True):
        unit = [maps / maps.norm(dim=1, keepdim=True).clamp(min=1e-12) for maps in (ours, theirs)]
        expected += (unit[0] - unit[1]).square().sum(1).mean((1, 2)) / 4
    torch.testing.assert_close(measure(first, second), expected)


def test_gradient_reaches_the_image_alone():
    image = torch.rand(1, 3, 32, 32, requires_grad=True)
    reference = torch.rand(1, 3, 32, 32, requires_grad=True)
    measure = distance()
    measure(image, reference).sum().backward()
    assert image.grad.abs().sum() > 0
    assert reference.grad is None
    assert all(p.grad is None and not p.requires_grad for p in measure.parameters())


@pytest.mark.parametrize(("num_layers", "side"), [(1, 14), (2, 6), (3, 2)])
def test_one_logit_for_each_patch(num_layers, side):
    net = PatchDiscriminator(num_channels=8, num_layers=num_layers)
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 1, side, side)


def test_a_logit_does_not_depend_on_other_images():
    net = PatchDiscriminator(num_channels=8, num_layers=2)
    images = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(net(images)[1:2], net(images[1:2]))


def test_discriminator_takes_images_in_unit_range():
    net = PatchDiscriminator(num_channels=8, num_layers=1)
    torch.testing.assert_close(net(torch.full((1, 3, 16, 16), 0.5)), net.layers(torch.zeros(1, 3, 16, 16)))
    assert F.relu(net(torch.rand(1, 3, 16, 16))).isfinite().all()
