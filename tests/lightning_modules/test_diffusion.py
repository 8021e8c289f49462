"""The diffusion core for any method: further losses, gradients through a frozen decoder, nested conditions, bounds."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion.codecs import IdentityCodec
from lightning_modules.diffusion import Step
from lightning_modules.latent_diffusion import LatentDiffusion
from lightning_modules.stable_diffusion import stacked
from networks.latent_diffusion_parts import LatentDiffusionParts
from tests.models import photo_batch, tiny_parts, tiny_settings, tiny_unet


class Aligned(LatentDiffusion):
    """Also compares the decoded clean estimate with the image at another size (Kim and Kim 2024)."""

    def further_losses(self, step: Step) -> dict[str, Tensor]:
        image = F.interpolate(step.batch["image"], (40, 24), mode="area")
        return {"image": 0.5 * (self.codec.decode(step.clean_estimate, (40, 24)) - image).square().mean()}


def make(kind: type[LatentDiffusion] = Aligned, **settings: Any) -> LatentDiffusion:
    torch.manual_seed(0)
    return kind(parts=settings.pop("parts", None) or tiny_parts(), **tiny_settings(**settings))


def test_a_further_loss_is_summed_logged_and_named(fit):
    module = make()
    trainer = fit(module, photo_batch(), steps=1)
    assert list(module.loss_terms) == ["denoising", "image"]
    figures = trainer.callback_metrics
    assert figures["train/loss"] == pytest.approx(float(figures["train/denoising"] + figures["train/image"]))
    trainer.limit_val_batches = 1.0
    trainer.validate(module, torch.utils.data.DataLoader([photo_batch()], batch_size=None), verbose=False)
    assert {"val/loss", "val/denoising", "val/image"} <= trainer.callback_metrics.keys()


@pytest.mark.parametrize("training", [True, False])
def test_a_gradient_passes_the_frozen_decoder_and_leaves_it_alone(training):
    """In train and in eval mode; the step's clean estimate is what the prediction stands for."""
    module, batch = make(), photo_batch()
    decoder = copy.deepcopy(module.codec.state_dict())
    module.log = lambda *_, **__: None
    clean, noise = module.codec.encode(batch["image"]), torch.randn(4, 4, 8, 8)
    timestep = torch.tensor([10, 200, 400, 700])
    x_t = module.path.corrupt(clean, noise, timestep)
    module.train(training)
    pred = module.denoise(x_t, timestep, {"text": module.embed(batch["caption"])})
    step = Step(batch, clean, None, x_t, timestep, None, pred, module.objective)
    module.further_losses(step)["image"].backward()
    assert all(p.grad is None for p in module.codec.parameters())
    assert max(float(p.grad.abs().max()) for p in module.parts.unet.parameters() if p.grad is not None) > 0
    assert all(torch.equal(value, decoder[name]) for name, value in module.codec.state_dict().items())
    exact = Step(
        batch,
        clean,
        None,
        x_t,
        timestep,
        None,
        module.objective.target(clean, noise, timestep),
        module.objective,
    )
    torch.testing.assert_close(exact.clean_estimate, clean, rtol=1e-3, atol=1e-4)


def test_conditions_of_any_nesting_are_stacked():
    one = {"text": torch.zeros(2, 3), "maps": [torch.zeros(2, 1), None], "pair": (torch.zeros(2), 7)}
    other = {"text": torch.ones(2, 3), "maps": [torch.ones(2, 1), None], "pair": (torch.ones(2), 7)}
    both = stacked(one, other)
    assert both["text"].shape == (4, 3)
    assert both["maps"][1] is None
    assert both["pair"][0].tolist() == [0, 0, 1, 1]
    assert both["pair"][1] == 7


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_pixels_are_drawn_inside_their_bounds_though_the_network_is_not(prediction):
    """Few steps of an untrained network leave the range by far; with the codec's bounds they cannot."""
    parts = LatentDiffusionParts(
        unet=tiny_unet(None, num_channels=3),
        vae=None,
        scheduler=tiny_parts(prediction_type=prediction, rescale_betas_zero_snr=False).scheduler,
    )
    module = make(LatentDiffusion, parts=parts).eval()
    assert isinstance(module.codec, IdentityCodec)
    denoise = module.guided({"text": None}, module.Options())
    noise = torch.randn(2, 3, 16, 16)
    drawn = [
        module.sampler(denoise, noise, module.objective, bounds=bounds)
        for bounds in (None, module.codec.bounds)
    ]
    assert drawn[0].abs().max() > 1.5
    assert drawn[1].abs().max() <= 1 + 1e-5
    torch.testing.assert_close(module.draw(denoise, noise, generators=[]), drawn[1])
