"""LIIF and what all methods of any size share: options, regions, strips, downscaling, evaluation, and that it learns."""

import pytest
import torch

from datamodules.raster import Raster
from lightning_modules import any_size
from lightning_modules.any_size import SizeOptions, region
from lightning_modules.liif import Liif
from metrics.per_image import Psnr
from metrics.resolution import resize_bicubic
from networks.liif_upscaler import LiifUpscaler
from tasks.base import Scores
from tasks.upscaling import Upscaling
from tests.lightning_modules.pictures import astronaut_crops
from tests.models import one_photo


def make(**settings) -> Liif:
    torch.manual_seed(0)
    network = LiifUpscaler(16, 2, widths=(32, 32), residual=settings.pop("residual", True))
    settings = {"input_px": 8, "optimizer": lambda p: torch.optim.AdamW(p, lr=4e-3)} | settings
    return Liif(network=network, **settings).eval()


def photo(height: int = 14, width: int = 23) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(3)).byte()


def upscaled(module: Liif, given: torch.Tensor, **words) -> torch.Tensor:
    return module.results(one_photo(given), module.Options(**words))["image"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({}, (56, 92)),
        ({"scale": 3.7}, (52, 85)),
        ({"scale": 1.0}, (14, 23)),
        ({"scale": 0.5}, (7, 12)),
        ({"size": (51, 19)}, (51, 19)),
        ({"scale": 2.0, "crop": (3, 4, 10, 20)}, (10, 20)),
    ],
)
def test_the_result_has_the_size_that_is_asked_for(words, expected):
    result = upscaled(make(residual=False), photo(), **words)
    assert result.shape == (1, 3, *expected)
    assert 0 <= result.min() <= result.max() <= 1


@pytest.mark.parametrize("size", [(70, 45), (40, 11)])
def test_a_region_is_the_slice_of_the_whole(size):
    module = make(residual=False)
    whole = upscaled(module, photo(), size=size)
    part = upscaled(module, photo(), size=size, crop=(7, 2, 25, 9))
    torch.testing.assert_close(part, whole[..., 7:32, 2:11], rtol=1e-5, atol=1e-5)


def test_a_large_result_is_a_raster_with_the_same_pixels(monkeypatch):
    module = make(residual=False)
    whole = upscaled(module, photo(), size=(600, 30))
    monkeypatch.setattr(any_size, "_WHOLE_PX", 100)
    result = upscaled(module, photo(), size=(600, 30))
    assert isinstance(result, Raster)
    strips = list(result.checked())
    assert [len(strip) for strip in strips] == [256, 256, 88]
    joined = torch.cat([torch.from_numpy(strip) for strip in strips]).permute(2, 0, 1)[None]
    assert torch.equal(joined, (whole * 255).round().byte())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"scale": 0.0}, "scale=0 is not a number above 0"),
        ({"scale": 2.0, "size": (3, 4)}, "leave one of them out"),
        ({"scale": 2.0, "crop": (20, 0, 9, 5)}, "crop=20,0,9,5 ends at 29x5, outside the result of 28x46"),
    ],
)
def test_what_cannot_be_is_refused(words, message):
    with pytest.raises(ValueError, match=message):
        upscaled(make(), photo(), **words)


@pytest.mark.parametrize("text", ["1,2,3", "a,b,c,d", "1,2,0,4", "-1,2,3,4"])
def test_a_region_is_four_numbers(text):
    assert region("1, 2,3,4") == (1, 2, 3, 4)
    with pytest.raises(ValueError, match="is not TOP,LEFT,HEIGHT,WIDTH"):
        region(text)


def test_the_loss_compares_each_patch_with_its_place_in_the_picture():
    """With a network that gives a picture's positions back, the patches are where their windows say."""
    module, seen = make(), {}
    image = torch.rand(3, 3, 32, 32)

    def patches(prepared, sizes, windows):
        seen["low"], seen["sizes"], seen["windows"] = prepared, sizes, windows
        return torch.zeros(3, 3, 8, 8)

    module.network.prepare, module.network.patches = (lambda low: low), patches
    loss = module.losses({"image": image, "index": torch.arange(3)})["l1"]
    assert seen["low"].shape == (3, 3, 8, 8)
    assert all(8 <= size[0] <= 32 and size[0] == size[1] for size in seen["sizes"])
    assert all(top + 8 <= size[0] for size, (top, *_) in zip(seen["sizes"], seen["windows"], strict=True))
    assert len(set(seen["sizes"])) > 1
    assert loss > 0.3  # the mean of such pictures is 0.5


def test_every_method_and_baseline_starts_from_the_protocols_small_pictures():
    module, task = make(), Upscaling(scale=3.0)
    batch = task.posed({"image": torch.rand(2, 3, 36, 36), "index": torch.arange(2)})
    assert batch["low"].shape == (2, 3, 12, 12)
    rows = dict(module.rows(batch, module.Options()))
    assert rows["result"]["image"].shape == (2, 3, 36, 36)
    scores = Scores(task)
    scores.update(rows["result"], batch)
    assert {"psnr_y", "ssim_y", "lr_psnr", "self_ssim"} <= scores.compute().keys()
    with pytest.raises(ValueError, match="set protocol.scale= alone"):
        next(iter(module.rows(batch, module.Options(scale=2.0))))
    with pytest.raises(ValueError, match="size= and crop= have no effect here"):
        next(iter(module.rows(batch, module.Options(size=(20, 20)))))
    assert module.protocol(module.Options(scale=3.0)) == {"scale": 3.0}


def test_options_know_their_sizes():
    assert SizeOptions(scale=3.7).size_px((10, 20)) == (37, 74)
    assert SizeOptions(scale=0.01).size_px((10, 20)) == (1, 1)


@pytest.mark.slow
def test_it_learns_more_than_bicubic_interpolation(fit):
    module, image = make(), astronaut_crops()
    fit(module, {"image": image, "index": torch.arange(len(image))}, steps=300)
    low = resize_bicubic(image, tuple(side // 3 for side in image.shape[-2:]))
    size_px = (image.shape[-2], image.shape[-1])
    with torch.no_grad():
        ours = module.eval().network(low, size_px).clamp(0, 1)
    scores = [Psnr().per_image(pred, image).mean() for pred in (ours, resize_bicubic(low, size_px))]
    assert scores[0] > scores[1] + 0.3
