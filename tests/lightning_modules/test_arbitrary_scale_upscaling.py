"""Upscaling by diffusion: one content at all sizes, what the network is told, tiles, evaluation, and that it learns."""

import pytest
import torch
from torch.nn import functional as F

from diffusion.samplers import Sampler
from lightning_modules import any_size
from lightning_modules.arbitrary_scale_upscaling import ArbitraryScaleUpscaling
from metrics.resolution import resize_bicubic
from runs.load import load_run
from tasks.upscaling import Upscaling
from tests.lightning_modules.any_size_models import settings
from tests.lightning_modules.pictures import astronaut_batch, astronaut_crops, psnr
from tests.models import one_photo, photo_batch


def make(**further) -> ArbitraryScaleUpscaling:
    return ArbitraryScaleUpscaling(**settings(**further)).eval()


def photo(height: int = 10, width: int = 15) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(3)).byte()


@pytest.mark.parametrize("decoder", ["implicit", "plain"])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({}, (40, 60)),
        ({"scale": 3.3}, (33, 50)),
        ({"scale": 1.0}, (10, 15)),
        ({"size": (23, 90)}, (23, 90)),
        ({"scale": 0.2}, (2, 3)),
    ],
)
def test_any_size(decoder, words, expected):
    module = make(**({} if decoder == "implicit" else {"decoder": None}))
    result = module.results(one_photo(photo()), module.Options(**words))["image"]
    assert result.shape == (1, 3, *expected)


def test_all_sizes_and_regions_show_one_latent(monkeypatch):
    module, latents = make(), []
    monkeypatch.setattr(
        module, "draw_latent", lambda *a: latents.append(type(module).draw_latent(module, *a)) or latents[-1]
    )
    whole = module.results(one_photo(photo()), module.Options(scale=6.0))["image"]
    module.results(one_photo(photo()), module.Options(size=(17, 90)))
    part = module.results(one_photo(photo()), module.Options(scale=6.0, crop=(9, 4, 20, 33)))["image"]
    assert torch.equal(latents[0], latents[1])
    torch.testing.assert_close(part, whole[..., 9:29, 4:37], rtol=1e-4, atol=1e-5)
    other = module.results(one_photo(photo()), module.Options(scale=6.0, seed=1))["image"]
    assert (other - whole).abs().max() > 1e-3
    samples = module.results(one_photo(photo()), module.Options(scale=6.0, num_samples=2))["image"]
    torch.testing.assert_close(samples[0], whole, rtol=1e-4, atol=1e-5)
    assert (samples[1] - whole).abs().max() > 1e-3


def test_large_results_come_in_strips(monkeypatch):
    module = make()
    whole = module.results(one_photo(photo()), module.Options(size=(300, 20)))["image"]
    monkeypatch.setattr(any_size, "_WHOLE_PX", 10)
    result = module.results(one_photo(photo()), module.Options(size=(300, 20)))["image"]
    strips = [torch.from_numpy(strip) for strip in result.checked()]
    assert [len(strip) for strip in strips] == [256, 44]
    joined = torch.cat(strips).permute(2, 0, 1)[None].int()
    assert (joined - (whole * 255).round().int()).abs().max() <= 1


def test_the_network_is_told_the_small_picture_and_how_small_it_is():
    module, batch = make(), photo_batch(3, 32)
    low, scale = module.condition(batch)
    assert low.shape == (3, 4, 8, 8)
    assert ((scale >= 1) & (scale <= 8)).all()
    side = max(1, round(32 / scale[1].item()))
    small = resize_bicubic(resize_bicubic(batch["image"][1:2], (side, side)), (32, 32))
    torch.testing.assert_close(low[1:2], module.codec.encode(small), rtol=1e-4, atol=1e-5)
    x_t, t = torch.randn(3, 4, 8, 8), torch.tensor([5, 20, 40])
    told = module.denoise(x_t, t, (low, scale))
    assert (told - module.denoise(x_t, t, (low, scale / 2 + 0.5))).abs().max() > 1e-5
    assert (told - module.denoise(x_t, t, (low * 0.5, scale))).abs().max() > 1e-5


def test_tiles_of_a_network_that_sees_one_cell_change_nothing():
    class Pointwise(torch.nn.Module):
        config = type("Config", (), {"block_out_channels": (8, 16)})

        def forward(self, x, timestep, class_labels):
            mixed = x[:, :4] * 0.5 + x[:, 4:].tanh() + timestep.view(-1, 1, 1, 1) * 0.01
            return type("Output", (), {"sample": mixed})

    module = make(unet=Pointwise())
    low = torch.rand(2, 3, 20, 33)
    options = module.Options()
    whole = module.draw_latent(low, [0, 1], options)
    module.working_px = 32
    torch.testing.assert_close(module.draw_latent(low, [0, 1], options), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("size_px", "told"), [((8, 16), 4.0), ((5, 5), 3.2), ((3, 3), 16 / 3)])
def test_the_network_is_told_the_scale_of_a_picture_that_is_stretched_to_the_grid(size_px, told, monkeypatch):
    module, seen = make(), []
    inner = module.denoise
    monkeypatch.setattr(module, "denoise", lambda x, t, c: seen.append(float(c[1][0])) or inner(x, t, c))
    module.draw_latent(torch.rand(1, 3, *size_px), [0], module.Options(steps=1))
    assert seen[0] == pytest.approx(told)


def test_evaluation_starts_from_the_protocols_small_pictures():
    module, task = make(), Upscaling(scale=4.0)
    batch = task.posed(photo_batch(2, 32))
    rows = dict(module.rows(batch, module.Options()))
    assert set(rows) == {"result", "autoencoder's ceiling"}
    assert rows["result"]["image"].shape == rows["autoencoder's ceiling"]["image"].shape == (2, 3, 32, 32)


@pytest.mark.parametrize("scale", [1.0, 9.0])
def test_a_scale_that_training_does_not_draw_is_refused(scale):
    with pytest.raises(
        ValueError, match=f"module.draw_scale={scale:g} is not above 1 and at most max_scale=8"
    ):
        make(draw_scale=scale)


@pytest.mark.slow
def test_it_learns_to_draw_more_than_bicubic_interpolation_shows(fit):
    """On four crops and the shipped autoencoder, x8: the latent's distance to the true one, against that of the bicubic picture's."""
    vae = load_run("autoencoder").module.vae
    module = make(
        vae=vae,
        decoder=None,
        prediction="sample",
        sampler=Sampler(num_steps=4),
        draw_scale=8.0,
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2),
    )
    image = astronaut_crops()
    fit(module, astronaut_batch(), steps=100)
    low = resize_bicubic(image, (4, 4))
    clean, plain = module.codec.encode(image), module.codec.encode(resize_bicubic(low, (32, 32)))
    drawn = module.eval().draw_latent(low, [0, 1, 2, 3], module.Options())
    assert F.mse_loss(drawn, clean) < 0.7 * F.mse_loss(plain, clean)
    assert psnr(module.codec.to_picture(drawn), image) > psnr(resize_bicubic(low, (32, 32)), image)
