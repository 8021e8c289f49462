"""Stage 1: its terms, the two players in one backward pass, the scale factor, and that it learns."""

import copy

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from lightning.pytorch import Callback
from torch import nn
from torch.nn import functional as F

from doors.export import save_exported
from lightning_modules.autoencoder import Autoencoder
from networks.discriminator import PatchDiscriminator
from networks.perceptual import FeatureDistance
from networks.squeezenet import SqueezeNetFeatures
from runs.load import load_exported
from tests.lightning_modules.pictures import astronaut_batch, astronaut_crops, psnr
from tests.models import photo_batch, tiny_vae


def make(*, lr: float = 1e-3, vae: AutoencoderKL | None = None, **settings) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(
        vae=vae or tiny_vae(),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=lr),
        **settings,
    )


def test_terms_are_l1_and_weighted_perceptual_distance():
    perceptual = FeatureDistance(SqueezeNetFeatures())
    module = make(perceptual=perceptual, perceptual_weight=0.3)
    first, second = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    terms = module.reconstruction_terms(first, second)
    torch.testing.assert_close(terms["l1"], F.l1_loss(first, second))
    torch.testing.assert_close(terms["perceptual"], 0.3 * perceptual(first, second).mean())
    assert list(make().reconstruction_terms(first, second)) == ["l1"]


def test_first_training_loss_is_the_formula(fit):
    """L1 of a posterior draw plus kl_weight times the KL in nats per image (Rombach et al. 2022, Eq. 25)."""
    seen = {}

    class Watched(Autoencoder):
        def reconstruction_terms(self, reconstruction, image):
            seen["reconstruction"] = reconstruction.detach()
            return super().reconstruction_terms(reconstruction, image)

        def on_train_batch_end(self, outputs, batch, batch_idx):
            seen["loss"] = outputs["loss"].detach()

    torch.manual_seed(0)
    vae = tiny_vae()
    start = copy.deepcopy(vae)
    module = Watched(vae=vae, kl_weight=1e-3, optimizer=lambda p: torch.optim.SGD(p, lr=1e-6))
    batch = photo_batch()
    fit(module, batch, steps=1)
    with torch.no_grad():
        posterior = start.train().encode(batch["image"] * 2 - 1).latent_dist
    mean, variance = posterior.mean.double(), posterior.logvar.double().exp()
    kl = 0.5 * (mean**2 + variance - 1 - variance.log()).sum((1, 2, 3)).mean()
    expected = (seen["reconstruction"] - batch["image"]).abs().mean() + 1e-3 * kl
    torch.testing.assert_close(seen["loss"].double(), expected.double(), rtol=1e-4, atol=1e-5)


class _Decoder(nn.Module):
    """One convolution stands for the autoencoder: the algebra needs the last layer alone, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_out = nn.Conv2d(3, 3, 3, padding=1)


class _Vae(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = _Decoder()


def two_players() -> tuple[Autoencoder, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    module = Autoencoder(
        vae=_Vae(),
        discriminator=PatchDiscriminator(num_channels=8, num_layers=2),
        adversarial_weight=0.7,
        optimizer=torch.optim.AdamW,
    ).double()
    image = torch.rand(2, 3, 24, 24, dtype=torch.float64)
    return module, image, module.vae.decoder.conv_out(image)


def gradients(network: nn.Module) -> list[torch.Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in network.parameters()]


def test_one_backward_pass_equals_two_separate_graphs():
    module, image, reconstruction = two_players()
    l1 = (reconstruction - image).abs().mean()
    terms = module.adversarial_terms(reconstruction, image, l1)
    (l1 + sum(terms.values())).backward()
    joint_vae, joint_discriminator = gradients(module.vae), gradients(module.discriminator)

    # The autoencoder alone: the discriminator's parameters take no gradient.
    module, image, reconstruction = two_players()
    module.discriminator.requires_grad_(False)
    l1 = (reconstruction - image).abs().mean()
    fool = -module.discriminator(reconstruction).mean()
    last = module.vae.decoder.conv_out.weight
    pull, push = (torch.autograd.grad(t, last, retain_graph=True)[0].norm() for t in (l1, fool))
    (l1 + 0.7 * pull / (push + 1e-4) * fool).backward()
    for ours, theirs in zip(joint_vae, gradients(module.vae), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)

    # The discriminator alone, hinge loss.
    module, image, reconstruction = two_players()
    real, fake = module.discriminator(image), module.discriminator(reconstruction.detach())
    (0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())).backward()
    for ours, theirs in zip(joint_discriminator, gradients(module.discriminator), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("term", "player"), [("adversarial", "discriminator"), ("discriminator", "vae")])
def test_each_term_teaches_one_player(term, player):
    module, image, reconstruction = two_players()
    module.adversarial_terms(reconstruction, image, (reconstruction - image).abs().mean())[term].backward()
    assert not any(g.any() for g in gradients(getattr(module, player)))
    other = "vae" if player == "discriminator" else "discriminator"
    assert any(g.any() for g in gradients(getattr(module, other)))


def test_adaptive_weight_balances_the_gradients_of_the_last_layer():
    """lambda = |grad reconstruction| / (|grad adversarial| + 1e-4), Esser et al. 2021, Eq. 7, in float64."""
    module, image, reconstruction = two_players()
    last = module.vae.decoder.conv_out.weight
    l1 = (reconstruction - image).abs().mean()
    terms = module.adversarial_terms(reconstruction, image, l1)
    pull = torch.autograd.grad(l1, last, retain_graph=True)[0].norm()
    push = torch.autograd.grad(-module.discriminator(reconstruction).mean(), last, retain_graph=True)[
        0
    ].norm()
    weighted = torch.autograd.grad(terms["adversarial"], last)[0].norm()
    assert float(weighted) == pytest.approx(float(0.7 * pull * push / (push + 1e-4)), rel=1e-10)


def test_the_discriminator_joins_at_its_step(fit):
    module = make(discriminator=PatchDiscriminator(num_channels=8, num_layers=1), adversarial_start_step=2)
    before = copy.deepcopy(module.discriminator.state_dict())
    joined = []
    module.on_train_batch_end = lambda *_: joined.append(
        float(module.trainer.callback_metrics["train/discriminator"])
    )
    fit(module, photo_batch(), steps=4)
    # Zero before, not absent: DDP waits for every gradient.
    assert joined == [0.0, 0.0, pytest.approx(1.0, abs=0.5), pytest.approx(1.0, abs=0.5)]
    assert any(not torch.equal(before[k], v) for k, v in module.discriminator.state_dict().items())


def test_it_learns_more_than_the_mean_colour(fit):
    module = make(lr=5e-3)
    image = astronaut_crops()
    mean_colour = image.mean((2, 3), keepdim=True).expand_as(image)
    before = psnr(module.reconstruct(image), image)
    fit(module, astronaut_batch(), steps=100)
    after = psnr(module.eval().reconstruct(image), image)
    assert after > psnr(mean_colour, image) + 2 > before


def test_scale_factor_is_one_over_the_latents_rms_and_travels(fit, tmp_path):
    module = make()
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    trainer = fit(module, photo_batch(), steps=1)
    trainer.limit_val_batches = 1.0
    batches = [{"image": part, "index": torch.arange(len(part))} for part in (images[:4], images[4:])]
    trainer.validate(module, torch.utils.data.DataLoader(batches, batch_size=None), verbose=False)
    with torch.no_grad():
        latents = module.vae.encode(images * 2 - 1).latent_dist.mean.double()
    scale = module.vae.config.scaling_factor
    assert scale == pytest.approx(float(latents.square().mean() ** -0.5), rel=1e-5)

    trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    other = make()
    other.on_load_checkpoint(checkpoint)
    assert other.vae.config.scaling_factor == scale
    save_exported(module, tmp_path)
    assert AutoencoderKL.from_pretrained(tmp_path / "vae").config.scaling_factor == pytest.approx(scale)
    another = make()
    with torch.no_grad():
        next(another.vae.parameters()).zero_()
    load_exported(another, tmp_path)
    assert another.vae.config.scaling_factor == pytest.approx(scale)
    assert torch.equal(another.reconstruct(images), module.reconstruct(images))


def test_an_interrupted_batch_counts_once_in_the_running_scale(fit):
    """The resumed run repeats the batch, so the checkpoint of the interrupted one must not know it."""

    class Interruption(Callback):
        def on_before_backward(self, trainer, module, loss):
            if trainer.global_step == 2:
                raise RuntimeError("stop here")

    whole, broken = make(), make()
    fit(whole, photo_batch(), steps=2)
    with pytest.raises(RuntimeError, match="stop here"):
        fit(broken, photo_batch(), steps=4, callbacks=[Interruption()])
    saved = [{"state_dict": module.state_dict()} for module in (whole, broken)]
    for module, checkpoint in zip((whole, broken), saved, strict=True):
        module.on_save_checkpoint(checkpoint)
    squares = [checkpoint["state_dict"]["latent_square"] for checkpoint in saved]
    assert squares[0] == squares[1]
    assert saved[0]["scaling_factor"] == saved[1]["scaling_factor"]


@pytest.mark.parametrize("measured", [True, False])
def test_a_checkpoint_of_an_earlier_version_keeps_its_scale(measured):
    """It held the running mean square beside the weights, and the scale factor."""
    module = make()
    state = {name: value for name, value in module.state_dict().items() if name != "latent_square"}
    checkpoint = {
        "state_dict": state,
        "scaling_factor": 0.5,
        "scale_was_measured": measured,
        "train_square": 4.0,
    }
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"], strict=False)
    again = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(again)
    assert again["scaling_factor"] == pytest.approx(0.5)
    assert again["scale_was_measured"] == measured


def test_an_autoencoder_without_a_posterior_learns_too(fit):
    """AutoencoderTiny: no KL term, and its own last layer for the adversarial one."""
    torch.manual_seed(0)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        upsampling_scaling_factor=2,
    )
    discriminator = PatchDiscriminator(num_channels=8, num_layers=1)
    last = [
        name
        for name, layer in vae.named_modules()
        if isinstance(layer, nn.Conv2d) and name.startswith("decoder")
    ][-1]
    with pytest.raises(ValueError, match="module.last_layer=decoder.conv_out is no layer of AutoencoderTiny"):
        make(vae=vae, discriminator=discriminator)
    module = make(vae=vae, discriminator=discriminator, last_layer=last, lr=5e-3)
    image = astronaut_crops()
    before = psnr(module.eval().reconstruct(image), image)
    fit(module, astronaut_batch(), steps=40)
    assert set(module.loss_terms) == {"l1", "adversarial", "discriminator"}
    assert psnr(module.eval().reconstruct(image), image) > before + 1
    assert module.latent_square > 0
