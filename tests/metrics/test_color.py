import numpy as np
import pytest
import torch
from skimage import data
from skimage.color import deltaE_ciede2000, rgb2lab

from color.lab import grey_image, lightness
from color.transfer import transfer_chroma_exact
from metrics.color import Colorfulness, ColorfulnessDifference, DeltaE2000, LightnessError, colorfulness


def photo(name: str = "astronaut", size_px: int = 128) -> torch.Tensor:
    return torch.from_numpy(getattr(data, name)())[:size_px, :size_px].permute(2, 0, 1)[None] / 255.0


def reference_colorfulness(image: torch.Tensor, absolute: bool) -> float:
    red, green, blue = (255.0 * image[0].double().numpy()).round()
    rg, yb = red - green, 0.5 * (red + green) - blue
    if absolute:
        rg, yb = np.abs(rg), np.abs(yb)
    return np.sqrt(rg.std() ** 2 + yb.std() ** 2) + 0.3 * np.sqrt(rg.mean() ** 2 + yb.mean() ** 2)


@pytest.mark.parametrize("variant", ["hasler", "absolute"])
def test_colorfulness_equals_the_formula_in_numpy(variant):
    images = torch.cat([photo("astronaut"), photo("coffee")])
    expected = [reference_colorfulness(image[None], variant == "absolute") for image in images]
    torch.testing.assert_close(
        colorfulness(images, variant=variant), torch.tensor(expected).float(), rtol=1e-4, atol=0
    )


def test_colorfulness_of_two_opposite_colours_in_closed_form():
    image = torch.zeros(1, 3, 2, 2)
    image[0, 0, 0], image[0, 1, 1] = 1.0, 1.0  # red above, green below: rg = +-255, yb = 127.5
    assert colorfulness(image).item() == pytest.approx(255 + 0.3 * 127.5)
    assert colorfulness(image, variant="absolute").item() == pytest.approx(0.3 * np.hypot(255, 127.5))


def test_grey_has_no_colorfulness():
    metric = Colorfulness()
    metric.update(grey_image(torch.rand(3, 1, 8, 8)))
    assert metric.compute().mean == 0
    assert metric.compute().count == 3


def test_conventions_of_the_difference():
    truth = torch.cat([photo("astronaut"), photo("coffee")])
    swapped = truth.flip(0)
    of_means, per_image = ColorfulnessDifference(), ColorfulnessDifference(convention="per_image")
    for metric in (of_means, per_image):
        metric.update(swapped, truth)
    gap = (colorfulness(truth)[0] - colorfulness(truth)[1]).abs().item()
    assert of_means.compute().mean == pytest.approx(0, abs=1e-5)
    assert of_means.compute().std is None
    assert per_image.compute().mean == pytest.approx(gap)
    assert per_image.compute().std == pytest.approx(0, abs=1e-5)


def test_delta_e_equals_skimage():
    first, second = photo("astronaut"), photo("coffee")
    metric = DeltaE2000()
    metric.update(first, second)
    pair = [rgb2lab(image[0].double().permute(1, 2, 0).numpy()) for image in (first, second)]
    assert metric.compute().mean == pytest.approx(deltaE_ciede2000(*pair).mean(), abs=1e-4)


def test_exact_transfer_has_a_lightness_error_below_the_promise():
    first, second = photo("astronaut"), photo("coffee")
    metric = LightnessError()
    metric.update(transfer_chroma_exact(lightness(first), second), first)
    assert 0 < metric.compute().mean < 0.3
