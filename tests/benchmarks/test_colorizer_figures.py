"""Figures and costs of colorizers against numpy, counted calls, and hand-made run folders."""

import numpy as np
import pytest
import torch

from benchmarks.colorizer_costs import evaluations_per_image, parameters, seconds_per_image, training_images
from benchmarks.colorizer_figures import Figures, spread
from benchmarks.colorizer_photos import (
    draw_all,
    draw_seeds,
    eight_bit,
    load_colorizer,
    plain_draw,
    whole_numbers,
    yes_or_no,
)
from benchmarks.colorizer_table import Row, markdown, shown
from diffusion.bridge_paths import BridgePath
from diffusion.bridge_samplers import BridgeSampler
from lightning_modules.colorize_controlnet import ColorizeControlNet
from lightning_modules.diffusing_colors import DiffusingColors
from metrics.colorization import ColorizationMetrics, ColorizationProtocol
from runs.load import Run
from tests.benchmarks.small_runs import photos
from tests.models import photo_batch, tiny_parts, tiny_settings


def controlnet(**settings) -> ColorizeControlNet:
    module = ColorizeControlNet(parts=tiny_parts(), **tiny_settings(**settings)).eval()
    torch.manual_seed(0)
    for parameter in module.controlnet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return module


def test_a_spread_is_numpys_mean_and_sample_deviation():
    values = np.random.default_rng(0).normal(15, 2, size=9)
    found = spread(values)
    assert found.mean == pytest.approx(np.mean(values), rel=1e-12)
    assert found.std == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    assert found.num == 9
    assert spread([3.0]) == (3.0, None, 1)


def test_the_figures_are_those_of_evaluate():
    images, truth = torch.rand(70, 3, 16, 16), torch.rand(70, 3, 16, 16)
    metrics = ColorizationMetrics(ColorizationProtocol(size_px=None, colorfulness_variant="absolute"))
    metrics.update(images, truth)
    expected = metrics.compute()
    found = Figures(eight_bit(truth))(eight_bit(images))
    assert list(found) == ["delta_e2000", "colorfulness_difference", "colorfulness", "psnr"]
    for name, value in found.items():
        assert value == pytest.approx(expected[name].mean, rel=1e-5)


def test_diversity_is_the_mean_over_pairs_and_the_best_is_taken_for_each_photo():
    truth = eight_bit(photos().image)
    figures = Figures(truth)
    one, other, third = truth.clone(), truth.flip(1), (truth.float() * 0.5).byte()
    other[0] = truth[0]  # right on the first photo alone
    pairs = [Figures(a).delta_e(b).mean().item() for a, b in ((one, other), (one, third), (other, third))]
    found = figures.diversity([one, other, third])
    assert found["diversity"] == pytest.approx(np.mean(pairs), rel=1e-6)
    assert found["best_of_seeds"] == 0
    best = torch.minimum(figures.delta_e(other), figures.delta_e(third))
    assert figures.diversity([other, third])["best_of_seeds"] == pytest.approx(best.mean().item())
    assert best[0] == 0
    assert best[1:].min() > 0


@pytest.mark.parametrize(("num_steps", "guidance", "expected"), [(1, 1.0, 1), (3, 1.0, 3), (3, 1.5, 6)])
def test_evaluations_are_steps_times_branches(num_steps, guidance, expected):
    module = controlnet()
    draw = plain_draw(module, num_steps=num_steps, guidance_scale=guidance)
    assert evaluations_per_image(module, draw, photos(2)) == expected
    assert not module.parts.unet._forward_hooks


def test_the_timing_gives_each_method_as_many_turns_and_the_parameters_are_counted():
    module, calls = controlnet(), []
    draws = {name: (lambda part, seed, name=name: calls.append(name) or part.image) for name in "ab"}
    seconds = seconds_per_image(draws, photos(2), 3)
    assert calls == ["a", "b"] * 4  # one round warms up
    assert all(value >= 0 for value in seconds.values())
    counted = parameters(module)
    assert counted["trained_parameters"] == sum(p.numel() for p in module.controlnet.parameters())
    assert counted["parameters"] == sum(
        p.numel() for p in [*module.controlnet.parameters(), *module.parts.parameters()]
    )


def test_noise_is_found_by_drawing():
    def walk(noise_scale: float) -> DiffusingColors:
        solver = "posterior" if noise_scale else "cold"
        sampler = BridgeSampler(solver=solver, num_steps=3)
        module = DiffusingColors(
            path=BridgePath(noise_scale=noise_scale), parts=tiny_parts(), **tiny_settings(sampler=sampler)
        )
        module.parts.vae.register_to_config(scaling_factor=0.05)  # an untrained decoder hardly shows colour
        return module.eval()

    calm, varies = draw_seeds(plain_draw(walk(0.0)), photos(), [0, 3])
    assert not varies
    assert len(calm) == 1
    drawn, varies = draw_seeds(plain_draw(walk(1.0)), photos(), [0, 3])
    assert varies
    assert len(drawn) == 2
    assert torch.equal(drawn[1], draw_all(plain_draw(walk(1.0)), photos(), 3))


def test_photos_seen_are_steps_times_batch_accumulation_and_processes(tmp_path):
    trainer = {"accumulate_grad_batches": 2, "devices": 3}
    config = {"datamodule": {"batch_size": 4}, "trainer": trainer}

    def seen(num_steps: int | None = 50, **changes) -> int | None:
        changed = config | {"trainer": trainer | changes}
        return training_images(Run(module=None, config=changed, source=tmp_path, num_steps=num_steps))

    assert seen() == 50 * 4 * 2 * 3
    assert seen(devices=[0, 1]) == 50 * 4 * 2 * 2
    assert seen(devices=-1) is None
    assert seen(None) is None  # a shipped model


def test_a_row_is_shown_with_its_spread_and_dashes():
    assert shown(spread([1.0, 3.0])) == "2.00 ± 1.41"
    assert shown(spread([-0.001])) == "0.00"
    rows = [
        Row("a|b", {"delta_e2000": spread([1.0, 3.0]), "parameters": spread([2_500_000])}, ["run"]),
        Row("grey", {"delta_e2000": spread([4.0])}),
    ]
    text = markdown(rows, "2 photos.")
    assert "| a\\|b | 2.00 ± 1.41 | 2.50 |" in text
    assert "| grey | 4.00 | - |" in text
    assert "PSNR" not in text  # no row has it
    assert rows[0].is_method
    assert not rows[1].is_method


@pytest.mark.parametrize("text", ["0,x", "", "-1", "1.5"])
def test_seeds_are_whole_numbers(text):
    with pytest.raises(ValueError, match=f"seeds={text} is not a list of whole numbers, such as seeds=0,1,2"):
        whole_numbers("seeds", text)


def test_options_that_make_no_sense_are_named(tmp_path):
    with pytest.raises(ValueError, match="seeds=1,01 names a number twice"):
        whole_numbers("seeds", "1,01")
    with pytest.raises(ValueError, match="captions=yes is not true or false"):
        yes_or_no("captions", "yes")
    with pytest.raises(ValueError, match="variant='loud', expected one of hasler, absolute"):
        Figures(eight_bit(photo_batch()["image"]), variant="loud")
    with pytest.raises(FileNotFoundError, match="SqueezeNet"):
        Figures(eight_bit(photo_batch()["image"]), weights_dir=str(tmp_path))


def test_a_run_that_colours_nothing_is_refused(tmp_path):
    from tests.runs.saved_runs import save_autoencoder

    run = save_autoencoder(tmp_path)
    with pytest.raises(
        ValueError, match=r"is a run of Autoencoder, which colours no photos; give runs of colorizers"
    ):
        load_colorizer(str(run), torch.device("cpu"))
