"""Alignment: Eq. 7 with a bound, a decoder that stays as it is, and a gradient that passes through it."""

import pytest
import torch

from doors.export import save_exported
from lightning_modules.alignment import Alignment
from lightning_modules.any_size import random_patches
from lightning_modules.arbitrary_scale_upscaling import ArbitraryScaleUpscaling
from lightning_modules.diffusion import Step
from runs.load import load_run
from tests.lightning_modules.any_size_models import settings
from tests.lightning_modules.pictures import astronaut_batch
from tests.models import photo_batch


def make(**further) -> Alignment:
    return Alignment(**settings(patch_px=16, **further))


def step_of(module: Alignment, batch: dict, timestep: int) -> Step:
    clean = module.codec.encode(batch["image"])
    t = torch.full((len(clean),), timestep)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    x_t = module.path.corrupt(clean, noise, t)
    condition = module.condition(batch)
    pred = module.denoise(x_t, t, condition)
    return Step(batch, clean, None, x_t, t, condition, pred, module.objective)


@pytest.mark.parametrize("training", [True, False])
def test_the_gradient_of_the_image_loss_passes_the_frozen_decoder(monkeypatch, training):
    module, batch = make(), photo_batch(2, 32)
    monkeypatch.setattr(Alignment, "batch_number", lambda self: 3)
    module.train(training)
    assert not module.codec.decoder.training  # in eval mode either way
    module.further_losses(step_of(module, batch, 20))["image"].backward()
    assert sum(p.grad.abs().sum() for p in module.unet.parameters() if p.grad is not None) > 0
    frozen = [*module.codec.parameters()]
    assert all(p.grad is None and not p.requires_grad for p in frozen)


def test_training_changes_the_unet_alone(fit):
    module = make()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fit(module, photo_batch(2, 32), steps=3)
    assert set(module.loss_terms) == {"denoising", "image"}
    changed = {name for name, value in module.state_dict().items() if not torch.equal(before[name], value)}
    assert changed
    assert all(name.startswith("unet.") for name in changed)


@pytest.mark.parametrize("timestep", [0, 15, 40])
def test_the_image_loss_is_equation_7_with_a_bound(timestep):
    module, batch = make(max_weight=2.0).eval(), photo_batch(2, 32)
    step = step_of(module, batch, timestep)
    with torch.no_grad():
        estimate, seen = step.clean_estimate, {}
        patches = module.codec.patches
        module.codec.patches = lambda *given: seen.setdefault("pictures", patches(*given))
        found = module.further_losses(step)["image"]
    _, _, truth = random_patches(batch["image"], module.draws(batch), smallest=16, patch_px=16)
    alpha, sigma = module.path.alpha_sigma(step.timestep)
    weight = (alpha**2 / sigma**2).clamp(max=2.0)
    error = (2 * seen["pictures"] - 2 * truth).square().mean((1, 2, 3))
    torch.testing.assert_close(found, (weight * error).mean(), rtol=1e-5, atol=1e-7)
    assert estimate.shape == step.clean.shape


def test_the_image_loss_is_in_float32_whatever_the_precision():
    module, batch = make().eval(), photo_batch(2, 32)
    step = step_of(module, batch, 10)
    with torch.no_grad():
        plain = module.further_losses(step)["image"]
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(module.further_losses(step)["image"], plain)


def test_the_decoder_stays_in_float32_in_a_bf16_training(fit, monkeypatch):
    module, seen = make(), []
    decode = module.codec.patches
    monkeypatch.setattr(module.codec, "patches", lambda *given: seen.append(decode(*given)) or seen[-1])
    fit(module, photo_batch(2, 32), steps=1, precision="bf16-mixed")
    dtypes = {part: next(getattr(module.codec, part).parameters()).dtype for part in ("vae", "decoder")}
    assert dtypes == {"vae": torch.bfloat16, "decoder": torch.float32}
    assert seen[0].dtype == torch.float32


def test_it_goes_on_from_an_export_of_upscaling(tmp_path):
    first = ArbitraryScaleUpscaling(**settings())
    with torch.no_grad():
        for parameter in first.unet.parameters():
            parameter.add_(0.1)
    save_exported(first, tmp_path)
    module = make(start=str(tmp_path))
    for name, value in first.unet.state_dict().items():
        torch.testing.assert_close(module.unet.state_dict()[name], value)
    with pytest.raises(FileNotFoundError, match="has no folder unet/"):
        make(start=str(tmp_path / "nothing"))


@pytest.mark.slow
def test_it_brings_the_pictures_of_its_estimates_nearer(fit):
    """The image loss at fixed draws falls by half in 40 steps, on the shipped autoencoder, from a new U-Net."""
    module = make(
        vae=load_run("autoencoder").module.vae,
        decoder=None,
        prediction="sample",
        optimizer=lambda p: torch.optim.AdamW(p, lr=5e-3),
    )
    batch = astronaut_batch(count=2)
    before = module.eval().further_losses(step_of(module, batch, 25))["image"].item()
    fit(module, batch, steps=40)
    after = module.eval().further_losses(step_of(module, batch, 25))["image"].item()
    assert after < 0.5 * before
