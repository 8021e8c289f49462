"""Diffusing Colors: its loss, its walk, what noise and prompts change, and that it learns colours."""

import numpy as np
import pytest
import torch

from color.lab import grey_image, lightness, rgb_to_lab
from diffusion.bridge_paths import BridgePath
from diffusion.bridge_samplers import BridgeSampler
from lightning_modules.autoencoder import Autoencoder
from lightning_modules.diffusing_colors import DiffusingColors
from lightning_modules.requests import DrawSettings, PredictRequest
from metrics.color import colorfulness
from metrics.delta_e import delta_e_2000
from tests.lightning_modules.pictures import astronaut_batch
from tests.models import photo_batch, tiny_parts, tiny_settings, tiny_vae

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


@pytest.mark.parametrize("noise_scale", [0.0, 2.0])
def test_the_loss_is_the_squared_error_of_what_is_missing(noise_scale):
    module, batch = make(noise_scale), photo_batch()
    clean = module.codec.encode(batch["image"])
    source = module.codec.encode(grey_image(lightness(batch["image"])))
    timestep = torch.tensor([0, 249, 499, 999])
    m = (timestep + 1).view(-1, 1, 1, 1) / 1000
    noise = torch.randn_like(clean)
    noisy = (1 - m) * clean + m * source + noise_scale * (m * (1 - m)).sqrt() * noise
    pred = module.parts.unet(noisy, timestep, module.embed([""] * 4)).sample
    expected = (pred - (clean - noisy)).square().flatten(1).mean(1)
    found = module.losses(batch, [""] * 4, clean, noise, timestep)
    assert torch.allclose(found, expected, rtol=1e-4)


def test_one_step_is_the_prediction_at_the_grey_latent():
    module, given = make(), lightness(photo_batch()["image"])
    source = module.codec.encode(grey_image(given))
    delta = module.parts.unet(source, torch.full((4,), 999), module.embed([""] * 4)).sample
    drawn = module.draw_colors(given, [""] * 4, IDS, DrawSettings(num_steps=1))
    assert torch.allclose(drawn, source + delta, atol=1e-5)


def test_seeing_the_source_changes_nothing_before_training_and_travels(tmp_path):
    plain, seeing, given = make(), make(sees_source=True), lightness(photo_batch()["image"])
    assert torch.equal(plain.colorize(given, [""] * 4, IDS), seeing.colorize(given, [""] * 4, IDS))
    with torch.no_grad():
        seeing.parts.unet.conv_in.weight[:, 4:].normal_()
    result = seeing.colorize(given, [""] * 4, IDS)
    assert not torch.equal(plain.colorize(given, [""] * 4, IDS), result)
    seeing.export(tmp_path)
    other = make(sees_source=True)
    other.load_export(tmp_path)
    assert torch.equal(other.colorize(given, [""] * 4, IDS), result)


def test_lightness_is_the_inputs_and_chroma_scale_raises_colourfulness():
    module, given = with_colors(make()), lightness(astronaut_batch()["image"])
    mean = []
    for scale in (0.0, 0.5, 1.0, 1.5):
        result = module.colorize(given, [""] * 4, IDS, DrawSettings(chroma_scale=scale))
        assert torch.allclose(rgb_to_lab(result)[:, :1] / 100, given, atol=2e-3)
        mean.append(float(colorfulness(result).mean()))
    assert mean[0] < 1.0
    assert mean == sorted(set(mean))


def test_without_noise_seeds_change_nothing_and_with_noise_they_do():
    given = lightness(photo_batch()["image"])
    for noise_scale in (0.0, 1.0):
        module = make(noise_scale)
        first, second = (module.draw_colors(given, [""] * 4, IDS, DrawSettings(seed=s)) for s in (0, 1))
        assert torch.equal(first, second) == (noise_scale == 0)
        alone = module.draw_colors(given[2:3], [""], IDS[2:3])
        assert torch.allclose(alone, first[2:3], atol=1e-5)


def test_guidance_acts_on_prompts_alone():
    module, given = make(guidance_scale=3.0), lightness(photo_batch()["image"])

    def drawn(prompt: str, **settings):
        return module.colorize(given, [prompt] * 4, IDS, DrawSettings(**settings))

    assert torch.equal(drawn(""), drawn("", guidance_scale=1.0))
    assert not torch.equal(drawn("red"), drawn("red", guidance_scale=1.0))
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
    fit(cached, batch | {"moments": moments, "source_moments": grey}, steps=2)
    theirs = cached.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in module.state_dict().items())
    assert not torch.equal(module.parts.unet.conv_in.weight, make().parts.unet.conv_in.weight)


def test_the_cached_source_is_what_the_walk_starts_from():
    """A cache that is ignored gives the same loss as one that is right: a wrong one must not."""
    module, batch = make(), photo_batch()
    grey = module.codec.moments(module.source_image(batch["image"]))
    clean = module.codec.encode(batch["image"])
    given = [""] * 4, clean, torch.zeros_like(clean), torch.full((4,), 499)
    plain, right, wrong = (
        module.losses(batch | cached, *given)
        for cached in ({}, {"source_moments": grey}, {"source_moments": grey + 0.5})
    )
    assert torch.equal(right, plain)
    assert (wrong - plain).abs().min() > 1e-3


def test_hints_are_learned_in_a_share_of_the_samples_alone(fit):
    image = astronaut_batch()["image"].repeat(16, 1, 1, 1)
    module = make(hint_prob=0.5)
    fit(module, photo_batch(), steps=1)
    hints = module.training_hints(image)
    assert hints.shape == (64, 3, 8, 8)
    told = hints[:, 2].flatten(1).amax(1)
    assert 16 < told.sum() < 48
    assert torch.equal(hints, module.training_hints(image))
    true = torch.nn.functional.avg_pool2d(rgb_to_lab(image)[:, 1:], 4) / 50
    whole = hints[:, 2] > 0
    assert (hints[:, :2] - true).abs().mean(1)[whole].mean() < 0.1
    assert hints[:, :2].abs().mean(1)[~whole].max() == 0


def test_training_shows_the_unet_its_hints_and_validation_none(fit):
    module, batch, seen = make(hint_prob=1.0), photo_batch(), []
    fit(module, batch, steps=1)
    clean = module.codec.encode(batch["image"])
    given = batch, [""] * 4, clean, torch.zeros_like(clean), torch.full((4,), 499)
    module.parts.unet.register_forward_pre_hook(lambda _, args: seen.append(args[0][:, 4:]))
    for training in (True, False):
        module.train(training).losses(*given)
    told = module.training_hints(batch["image"])
    assert told.abs().max() > 0
    assert torch.equal(seen[0], told)
    assert torch.equal(seen[1], torch.zeros_like(told))


def test_a_base_without_text_is_not_guided():
    module, batch = make(parts=tiny_parts(text=False), guidance_scale=3.0), photo_batch()
    panels = module.sample_panels(batch)
    assert torch.equal(panels["result"], panels["result with prompt"])


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
    given = lightness(photo_batch()["image"])
    assert torch.equal(
        make().colorize(given, [""] * 4, IDS), make(hint_prob=0.5).colorize(given, [""] * 4, IDS)
    )
    with pytest.raises(ValueError, match=r"module.hint_prob is 2; expected a probability"):
        make(hint_prob=2)


def test_a_photo_of_any_size_is_coloured_at_its_own(tmp_path):
    photo = torch.randint(0, 256, (3, 45, 70), dtype=torch.uint8)
    results = make(1.0).predict_photo(photo, PredictRequest(number=0, num_samples=2, short_px=32))
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
    result = module.eval().colorize(given, batch["caption"], [0, 1, 2, 3])
    truth = rgb_to_lab(image)
    ours, grey = (delta_e_2000(rgb_to_lab(i), truth).mean() for i in (result, grey_image(given)))
    assert ours < grey - 1
