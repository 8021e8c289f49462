"""Diffusing Colors: its loss, its walk, what noise and prompts change, and that it learns colours."""

import numpy as np
import pytest
import torch

from color.hints import NUM_RANDOM, random_hints
from color.lab import grey_image, lightness, rgb_to_lab
from diffusion.bridge_paths import BridgePath
from diffusion.bridge_samplers import BridgeSampler
from doors.export import save_exported
from lightning_modules.autoencoder import Autoencoder
from lightning_modules.diffusing_colors import DiffusingColors
from metrics.color import colorfulness
from metrics.delta_e import delta_e_2000
from runs.load import load_exported
from tests.lightning_modules.pictures import astronaut_batch
from tests.models import (
    colored,
    colors,
    numbered,
    photo_batch,
    predicted,
    rows,
    tiny_parts,
    tiny_settings,
    tiny_vae,
)

IDS = [5, 6, 7, 8]


def make(noise_scale: float = 0.0, **settings) -> DiffusingColors:
    torch.manual_seed(0)
    solver = {"solver": "posterior" if noise_scale else "cold", "num_steps": 3} | settings.pop("solver", {})
    return DiffusingColors(
        path=BridgePath(noise_scale=noise_scale, **settings.pop("path", {})),
        parts=settings.pop("parts", None) or tiny_parts(),
        **tiny_settings(sampler=BridgeSampler(**solver), **settings),
    ).eval()


def with_colors(module: DiffusingColors) -> DiffusingColors:
    """A decoder of an untrained codec hardly shows colour: let the latents speak louder."""
    module.parts.vae.register_to_config(scaling_factor=0.05)
    return module


class At:
    """Draws of a given noise and uniform number."""

    def __init__(self, noise: torch.Tensor, uniform: np.ndarray) -> None:
        self.noise, self.numbers = noise, uniform

    def normal(self, stream: str, shape: tuple[int, ...]) -> torch.Tensor:
        return self.noise

    def uniform(self, stream: str, count: int | None = None) -> np.ndarray:
        return self.numbers


@pytest.mark.parametrize("noise_scale", [0.0, 2.0])
def test_the_loss_is_the_squared_error_of_what_is_missing(noise_scale, monkeypatch):
    module, batch = make(noise_scale), photo_batch()
    clean = module.codec.encode(batch["image"])
    source = module.codec.encode(grey_image(lightness(batch["image"])))
    timestep = torch.tensor([0, 249, 499, 999])
    m = (timestep + 1).view(-1, 1, 1, 1) / 1000
    noise = torch.randn_like(clean)
    noisy = (1 - m) * clean + m * source + noise_scale * (m * (1 - m)).sqrt() * noise
    pred = module.parts.unet(noisy, timestep, module.embed(batch["caption"])).sample
    monkeypatch.setattr(module, "draws", lambda batch: At(noise, timestep.numpy() / 1000 + 1e-6))
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    found = module.losses(batch)
    torch.testing.assert_close(
        found["denoising"], (pred - (clean - noisy)).square().mean(), rtol=1e-4, atol=0
    )
    assert list(found) == ["denoising"]


def test_one_step_is_the_prediction_at_the_grey_latent():
    module, batch = make(), photo_batch()
    source = module.codec.encode(grey_image(lightness(batch["image"])))
    delta = module.parts.unet(source, torch.full((4,), 999), module.embed([""] * 4)).sample
    torch.testing.assert_close(colors(module, batch, steps=1), source + delta, rtol=1e-4, atol=1e-4)


def test_seeing_the_source_changes_nothing_before_training_and_travels(tmp_path):
    """Up to the order of sums: the first convolution adds further channels of zero weight."""
    plain, seeing, batch = make(), make(sees_source=True), photo_batch()
    torch.testing.assert_close(colors(plain, batch), colors(seeing, batch), rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        seeing.parts.unet.conv_in.weight[:, 4:].normal_()
    result = colors(seeing, batch)
    assert (colors(plain, batch) - result).abs().max() > 1e-2
    save_exported(seeing, tmp_path)
    other = make(sees_source=True)
    load_exported(other, tmp_path)
    assert torch.equal(colors(other, batch), result)


def test_lightness_is_the_inputs_and_chroma_scale_raises_colourfulness():
    module, batch = with_colors(make()), astronaut_batch()
    mean = []
    for scale in (0.0, 0.5, 1.0, 1.5):
        result = colored(module, batch, chroma=scale)
        assert torch.allclose(rgb_to_lab(result)[:, :1] / 100, lightness(batch["image"]), atol=2e-3)
        mean.append(float(colorfulness(result).mean()))
    assert mean[0] < 1.0
    assert mean == sorted(set(mean))


def test_without_noise_seeds_change_nothing_and_with_noise_they_do():
    batch = numbered(photo_batch(), IDS)
    for noise_scale in (0.0, 1.0):
        module = make(noise_scale)
        first, second = (colors(module, batch, seed=seed) for seed in (0, 1))
        assert torch.equal(first, second) == (noise_scale == 0)
        alone = colors(module, rows(batch, 2))
        torch.testing.assert_close(alone, first[2:3], rtol=1e-3, atol=1e-3)


def test_guidance_acts_on_prompts_alone():
    module, batch = make(guidance_scale=3.0), photo_batch()

    def drawn(prompt: str, **words):
        return colors(module, batch, [prompt] * 4, **words)

    assert torch.equal(drawn(""), drawn("", guidance=1.0))
    assert not torch.equal(drawn("red"), drawn("red", guidance=1.0))
    assert not torch.equal(drawn("", negative_prompt="blue"), drawn(""))


def test_training_moves_the_unet_alone_and_cached_moments_do_the_same(fit):
    batch = photo_batch()
    module = make()
    moments = module.codec.moments(batch["image"])
    grey = module.codec.moments(grey_image(lightness(batch["image"])))
    frozen = {k: v.clone() for k, v in module.state_dict().items() if ".unet." not in k}
    fit(module, batch, steps=2)
    assert all(torch.equal(module.state_dict()[k], v) for k, v in frozen.items())
    cached = make()
    fit(cached, batch | {"encodings": {"image": moments, "source": grey}}, steps=2)
    theirs = cached.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in module.state_dict().items())
    assert not torch.equal(module.parts.unet.conv_in.weight, make().parts.unet.conv_in.weight)


def test_the_cached_source_is_what_the_walk_starts_from(monkeypatch):
    """A cache that is ignored gives the same loss as one that is right: a wrong one must not."""
    module, batch = make(), photo_batch()
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    grey = module.codec.moments(grey_image(lightness(batch["image"])))
    cached: list[dict[str, torch.Tensor]] = [{}, {"source": grey}, {"source": grey + 0.5}]
    plain, right, wrong = (module.losses(batch | {"encodings": c})["denoising"] for c in cached)
    torch.testing.assert_close(right, plain)
    assert abs(wrong - plain) > 1e-3


def test_the_grey_latent_is_encoded_once_in_a_step(monkeypatch):
    module, batch, encoded = make(sees_source=True, hint_prob=0.5), photo_batch(), []
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    moments = module.codec.moments
    monkeypatch.setattr(module.codec, "moments", lambda image: encoded.append(1) or moments(image))
    module.losses(batch)
    assert len(encoded) == 2  # the photo and its grey copy
    assert "encodings" not in batch


def test_hints_are_learned_in_a_share_of_the_samples_alone(fit):
    image = astronaut_batch()["image"].repeat(16, 1, 1, 1)
    module = make(hint_prob=0.5)
    fit(module, photo_batch(), steps=1)
    module.train()
    batch = {"image": image, "index": torch.arange(64)}
    uniform = module.draws(batch).uniform("hint", NUM_RANDOM + 1)
    hints = random_hints(image, uniform, prob=0.5, downscale=4)
    assert hints.shape == (64, 3, 8, 8)
    told = hints[:, 2].flatten(1).amax(1)
    assert 16 < told.sum() < 48
    true = torch.nn.functional.avg_pool2d(rgb_to_lab(image)[:, 1:], 4) / 50
    whole = hints[:, 2] > 0
    assert (hints[:, :2] - true).abs().mean(1)[whole].mean() < 0.1
    assert hints[:, :2].abs().mean(1)[~whole].max() == 0


def test_training_shows_the_unet_its_hints_and_validation_none(fit):
    module, batch, seen = make(hint_prob=1.0), photo_batch(), []
    fit(module, batch, steps=1)
    module.parts.unet.register_forward_pre_hook(lambda _, args: seen.append(args[0][:, 4:]))
    module.log = lambda *_, **__: None
    for training in (True, False):
        module.train(training).losses(batch)
    uniform = module.train().draws(batch).uniform("hint", NUM_RANDOM + 1)
    told = random_hints(batch["image"], uniform, prob=1.0, downscale=4)
    assert told.abs().max() > 0
    assert torch.equal(seen[0], told)
    assert torch.equal(seen[1], torch.zeros_like(told))


def test_a_base_without_text_is_not_guided():
    module, batch = make(parts=tiny_parts(text=False), guidance_scale=3.0), photo_batch()
    panels = module.sample_panels(batch)
    assert list(panels) == ["input", "no prompt", "caption as prompt", "autoencoder's ceiling", "truth"]
    assert torch.equal(panels["no prompt"], panels["caption as prompt"])


@pytest.mark.parametrize("key", ["weighting", "gamma"])
def test_a_weighting_of_the_noise_path_is_refused(key):
    with pytest.raises(
        ValueError, match=f"module.{key} has no effect on a bridge; leave it out, or set module.b"
    ):
        make(**{key: 1.0})


def test_a_share_of_the_training_stands_at_the_source_and_the_rest_is_uniform():
    module, uniform = make(source_prob=0.5), np.linspace(0, 1, 20000, endpoint=False)
    found = module.timesteps(uniform)
    assert int((found == 999).sum()) == 10000 + 10
    assert (found[10000:] - make().timesteps(uniform[::2])).abs().max() <= 1  # rounding
    assert torch.equal(
        module.train().timesteps(uniform), found
    )  # the best checkpoint is judged by the same share
    assert (make().timesteps(uniform) == torch.arange(1000).repeat_interleave(20)).all()
    assert (make(source_prob=1.0).timesteps(uniform) == 999).all()
    with pytest.raises(ValueError, match=r"module.source_prob is -1; expected a probability"):
        make(source_prob=-1)


def test_without_hints_the_extra_channels_change_nothing_before_training():
    plain, hinted = (colors(make(hint_prob=prob), photo_batch()) for prob in (0.0, 0.5))
    torch.testing.assert_close(plain, hinted, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match=r"module.hint_prob is 2; expected a probability"):
        make(hint_prob=2)


def test_a_photo_of_any_size_is_coloured_at_its_own():
    photo = torch.randint(0, 256, (3, 45, 70), dtype=torch.uint8)
    results = predicted(make(1.0), photo, num_samples=2, short_px=32)
    assert [tuple(r.shape) for r in results] == [(3, 45, 70)] * 2
    assert not torch.equal(*results)


def test_a_sampler_that_cannot_walk_the_path_is_refused():
    with pytest.raises(ValueError, match="sampler.solver 'cold' walks without noise"):
        make(1.0, solver={"solver": "cold"})


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("noise_scale", [0.0, 0.5])
def test_it_learns_colours_that_beat_grey(fit, noise_scale):
    """Four crops by heart, on a codec of their own."""
    batch = astronaut_batch()
    image, given = batch["image"], lightness(batch["image"])
    torch.manual_seed(0)
    vae = tiny_vae()
    fit(Autoencoder(vae=vae, optimizer=lambda p: torch.optim.AdamW(p, lr=5e-3)), batch, steps=150)
    with torch.no_grad():
        latents = vae.eval().encode(image * 2 - 1).latent_dist.mean
    vae.register_to_config(scaling_factor=float(latents.square().mean() ** -0.5))
    parts = tiny_parts()
    parts.vae = vae
    module = make(
        noise_scale,
        parts=parts,
        solver={"num_steps": 10},
        sees_source=noise_scale > 0,
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2),
    )
    fit(module, batch, steps=150)
    result = colored(module.eval(), batch, batch["caption"])
    truth = rgb_to_lab(image)
    ours, grey = (delta_e_2000(rgb_to_lab(i), truth).mean() for i in (result, grey_image(given)))
    assert ours < grey - 1
