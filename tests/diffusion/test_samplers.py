"""Solvers against closed forms: a Gaussian whose score is known exactly, and a clean sample known in advance."""

import pytest
import torch

from diffusion.objectives import GaussianObjective
from diffusion.paths import GaussianPath
from diffusion.samplers import SOLVERS, Sampler
from diffusion.seeding import generators, randn

PREDICTIONS = ["epsilon", "v_prediction", "sample"]


def gaussian_denoiser(objective, mean, std):
    """The exact prediction where clean ~ N(mean, std^2): E[x_0 | x_t] is linear in x_t."""

    def denoise(noisy, timestep):
        alpha, sigma = (v.view(-1, 1, 1, 1) for v in objective.path.alpha_sigma(timestep))
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        clean = mean + gain * (noisy - alpha * mean)
        noise = (noisy - alpha * clean) / sigma
        return {"sample": clean, "epsilon": noise, "v_prediction": alpha * noise - sigma * clean}[
            objective.prediction
        ]

    return denoise


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_draws_from_a_known_gaussian(solver, prediction, zero_snr):
    if zero_snr and prediction == "epsilon":
        pytest.skip("epsilon is undefined without terminal signal")
    objective = GaussianObjective(GaussianPath(zero_terminal_snr=zero_snr), prediction=prediction)
    sources = generators(0, sample=range(64))
    noise = randn((4, 8, 8), sources)
    sampler = Sampler(solver=solver, num_steps=100 if solver == "ddpm" else 50)
    # Euler's own input scaling is undone for the closed form: it hands over x_t on the variance-preserving path.
    drawn = sampler(gaussian_denoiser(objective, 0.5, 0.8), noise, objective, generators=sources)
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
        sources = generators(5, sample=samples)
        return Sampler(num_steps=5, **settings)(
            denoise, randn((2, 4, 4), sources), objective, generators=sources
        )

    torch.testing.assert_close(draw([1, 2, 3])[2:], draw([3]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"solver": "heun3"}, "expected one of ddpm"),
        ({"num_steps": 0}, "at least 1"),
        ({"solver": "dpmpp", "eta": 0.5}, "has no effect"),
    ],
)
def test_bad_settings_are_named(settings, text):
    with pytest.raises(ValueError, match=text):
        Sampler(**settings)
