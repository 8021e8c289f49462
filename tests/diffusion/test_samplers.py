"""Solvers against closed forms: a Gaussian whose score is known exactly, and a clean sample known in advance."""

from typing import get_args

import pytest
import torch

from diffusion.objectives import GaussianObjective, Prediction
from diffusion.paths import GaussianPath
from diffusion.samplers import Sampler, Solver
from diffusion.seeding import generators, randn
from tests.diffusion.denoisers import gaussian_denoiser

SOLVERS = get_args(Solver)
PREDICTIONS = get_args(Prediction)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_draws_from_a_known_gaussian(solver, prediction, zero_snr):
    if zero_snr and prediction == "epsilon":
        pytest.skip("epsilon is undefined without terminal signal")
    objective = GaussianObjective(GaussianPath(zero_terminal_snr=zero_snr), prediction=prediction)
    rngs = generators(0, sample=range(64))
    noise = randn((4, 8, 8), rngs)
    sampler = Sampler(solver=solver, num_steps=100 if solver == "ddpm" else 50)
    # Euler's own input scaling is undone: it hands over x_t on the variance-preserving path.
    drawn = sampler(gaussian_denoiser(objective, 0.5, 0.8), noise, objective, generators=rngs)
    assert abs(drawn.mean().item() - 0.5) < 0.05
    assert abs(drawn.std().item() - 0.8) < 0.06


@pytest.mark.parametrize("solver", ["ddim", "dpmpp", "unipc"])
@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_few_steps_of_a_perfect_denoiser_are_exact(solver, num_steps):
    objective = GaussianObjective(GaussianPath(zero_terminal_snr=True), prediction="sample")
    clean = torch.linspace(-1, 1, 64).view(1, 1, 8, 8)
    drawn = Sampler(solver=solver, num_steps=num_steps)(
        lambda x, t: clean, torch.randn(1, 1, 8, 8), objective
    )
    torch.testing.assert_close(drawn, clean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", [{"solver": "ddpm"}, {"solver": "ddim", "eta": 1.0}])
def test_stochastic_samples_do_not_depend_on_the_batch(settings):
    objective = GaussianObjective(GaussianPath(), prediction="epsilon")
    denoise = gaussian_denoiser(objective, 0.0, 1.0)

    def draw(samples):
        rngs = generators(5, sample=samples)
        return Sampler(num_steps=5, **settings)(denoise, randn((2, 4, 4), rngs), objective, generators=rngs)

    torch.testing.assert_close(draw([1, 2, 3])[2:], draw([3]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        ("ddpm", {"variance_type": "fixed_large"}),
        ("ddim", {"timestep_spacing": "leading", "steps_offset": 1}),
        ("dpmpp", {"use_karras_sigmas": True, "solver_order": 3}),
        ("unipc", {"solver_order": 3, "solver_type": "bh1"}),
        ("euler", {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}),
    ],
)
def test_options_reach_the_scheduler(solver, options):
    objective = GaussianObjective(GaussianPath())
    plain = Sampler(solver=solver, num_steps=9)
    sampler = Sampler(solver=solver, num_steps=4, scheduler_options=options).with_steps(9)
    configs = [dict(s.scheduler(objective).config) for s in (plain, sampler)]
    for config in configs:
        config.pop("_use_default_values")  # diffusers' note of what was not given
    assert configs[1] == configs[0] | options
    rngs = generators(0, sample=[0])
    noise, denoise = randn((2, 4, 4), rngs), gaussian_denoiser(objective, 0.5, 0.8)
    first, second = (
        s(denoise, noise, objective, generators=generators(1, sample=[0])) for s in (plain, sampler)
    )
    assert not torch.allclose(first, second, atol=1e-4)


def test_karras_noise_levels_are_the_published_ones():
    """Karras et al. 2022, Eq. 5 with rho = 7, between the ends of the path."""
    path = GaussianPath()
    sampler = Sampler(solver="euler", num_steps=9, scheduler_options={"use_karras_sigmas": True})
    sigmas = ((1 - path.alphas_cumprod) / path.alphas_cumprod).sqrt().double()
    low, high = sigmas[110] ** (1 / 7), sigmas[-1] ** (1 / 7)  # 110: the last of nine timesteps
    expected = (high + torch.linspace(0, 1, 9, dtype=torch.float64) * (low - high)) ** 7
    found = sampler.scheduler(GaussianObjective(path)).sigmas
    torch.testing.assert_close(found[:-1].double(), expected, rtol=1e-4, atol=0)
    assert found[-1] == 0


@pytest.mark.parametrize("options", [{"use_karras_sigmas": True}, {"use_exponential_sigmas": True}])
@pytest.mark.parametrize("solver", ["dpmpp", "unipc", "euler"])
def test_other_noise_levels_draw_the_same_gaussian(solver, options):
    objective, rngs = GaussianObjective(GaussianPath()), generators(0, sample=range(64))
    sampler = Sampler(solver=solver, num_steps=50, scheduler_options=options)
    drawn = sampler(gaussian_denoiser(objective, 0.5, 0.8), randn((4, 8, 8), rngs), objective)
    assert abs(drawn.mean().item() - 0.5) < 0.05
    assert abs(drawn.std().item() - 0.8) < 0.06


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"solver": "heun3"}, "sampler.solver is 'heun3'; expected ddpm, ddim, dpmpp, unipc or euler"),
        ({"num_steps": 0}, "at least 1"),
        ({"solver": "dpmpp", "eta": 0.5}, "has no effect"),
        (
            {"solver": "unipc", "scheduler_options": {"solver_odrer": 3}},
            "sampler.scheduler_options has solver_odrer, but solver 'unipc' takes .*solver_order",
        ),
        (
            {"solver": "ddim", "scheduler_options": {"beta_end": 0.02, "prediction_type": "epsilon"}},
            "scheduler_options has beta_end, prediction_type, but",  # those are the path's and the objective's
        ),
    ],
)
def test_bad_settings_are_named(settings, text):
    with pytest.raises(ValueError, match=text):
        Sampler(**settings)
