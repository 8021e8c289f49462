"""What all methods get from the base: warm-up in every schedule, compiled modules that are really called."""

import pytest
import torch
from torch import nn

from lightning_modules.autoencoder import Autoencoder
from lightning_modules.colorize_controlnet import ColorizeControlNet
from tests.models import photo_batch, tiny_parts, tiny_settings, tiny_vae


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_every_schedule_starts_with_the_warm_up(fit, schedule):
    module = Autoencoder(
        vae=tiny_vae(),
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
        lr_schedule=schedule,
        num_warmup_steps=4,
    )
    rates = []
    module.on_before_optimizer_step = lambda optimizer: rates.append(optimizer.param_groups[0]["lr"])
    fit(module, photo_batch(2), steps=4)
    assert rates == pytest.approx([0.0, 0.25, 0.5, 0.75])


@pytest.mark.parametrize("train_decoder", [False, True])
def test_compiled_modules_are_called_in_a_training_step(fit, train_decoder):
    module = ColorizeControlNet(parts=tiny_parts(), **tiny_settings(train_decoder=train_decoder))
    called = set()
    networks = module.compiled_networks()
    for network in networks:
        network.register_forward_pre_hook(lambda m, _: called.add(id(m)))
    fit(module, photo_batch(2), steps=1)
    assert called == {id(network) for network in networks}
    assert not any(isinstance(network, nn.ModuleList) for network in networks)


def test_an_autoencoder_that_never_validated_knows_its_scale(fit, tmp_path):
    vae = tiny_vae()
    module = Autoencoder(vae=vae, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    batch = photo_batch(4)
    trainer = fit(module, batch, steps=2)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with torch.no_grad():
        mean = vae.encode(batch["image"] * 2 - 1).latent_dist.mean
    assert vae.config.scaling_factor == pytest.approx(mean.square().mean().sqrt().item() ** -1, rel=1e-4)
