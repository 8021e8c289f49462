"""Clipping the clean estimate: what it saves in pixel space, and that it changes nothing where it need not."""

from typing import get_args

import pytest
import torch

from diffusion.bridge_objectives import BridgeObjective
from diffusion.bridge_paths import BridgePath
from diffusion.bridge_samplers import BridgeSampler
from diffusion.objectives import GaussianObjective, Prediction
from diffusion.paths import GaussianPath
from diffusion.samplers import Sampler, Solver
from diffusion.seeding import generators, randn
from tests.diffusion.denoisers import prediction_of

SAMPLERS = [*({"solver": s} for s in get_args(Solver)), {"solver": "ddim", "eta": 1.0}]
BRIDGES = [("cold", 0.0), ("indi", 0.0), ("posterior", 0.0), ("ode", 0.0), ("posterior", 0.9), ("ode", 0.9)]


def name(settings):
    return "-".join(str(value) for value in settings.values())


# ---- a toy segmentation: a mask of -1 and 1 in pixel space, 100 timesteps, the noise predicted


def toy_dice(num_steps, bounds):
    """Dice of masks drawn with the exact posterior of each pixel under a photo, but for an error of 0.1 in the noise."""
    objective = GaussianObjective(GaussianPath(num_timesteps=100, beta_schedule="squaredcos_cap_v2"))
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    mask = torch.where((y - 15) ** 2 + (x - 17) ** 2 < 70, 1.0, -1.0).expand(4, 1, 32, 32)
    texture = torch.sin(1.7 * x + 0.9 * y)

    def denoise(x_t, timestep):
        alpha, sigma = (v.view(-1, 1, 1, 1) for v in objective.path.alpha_sigma(timestep))
        # Half the log odds of 1 against -1: of the photo, and of N(x_t; alpha m, sigma^2).
        clean = torch.tanh(2.5 * mask + 0.5 * texture + alpha / sigma**2 * x_t)
        return (x_t - alpha * clean) / sigma + 0.1 * texture

    noise = randn((1, 32, 32), generators(0, sample=range(4)))
    drawn = Sampler(solver="ddim", num_steps=num_steps)(denoise, noise, objective, bounds=bounds) > 0
    return (2 * (drawn & (mask > 0)).sum() / (drawn.sum() + (mask > 0).sum())).item()


@pytest.mark.parametrize("num_steps", [5, 20, 100])
def test_few_steps_in_pixel_space_need_the_bounds(num_steps):
    """Measured: Dice 0.32, 0.35 and 0.63 without bounds in 5, 20 and 100 steps; 0.98 with them."""
    assert toy_dice(num_steps, None) < 0.75
    assert toy_dice(num_steps, (-1.0, 1.0)) >= 0.96


# ---- every solver


def wild(objective):
    """A network whose clean estimate leaves [-1, 1] at almost every pixel."""

    def denoise(x, timestep):
        return prediction_of(objective, 3 * torch.sin(5 * x) + 0.5, x, timestep)

    return denoise


@pytest.mark.parametrize("num_steps", [1, 5, 20])
@pytest.mark.parametrize("prediction", get_args(Prediction))
@pytest.mark.parametrize("settings", SAMPLERS, ids=name)
def test_drawn_values_are_inside_the_bounds(settings, prediction, num_steps):
    objective = GaussianObjective(GaussianPath(), prediction=prediction)
    rngs = generators(0, sample=range(4))
    sampler, noise = Sampler(num_steps=num_steps, **settings), randn((2, 8, 8), rngs)
    drawn = sampler(wild(objective), noise, objective, generators=rngs, bounds=(-1.0, 0.5))
    assert drawn.min() >= -1 - 1e-5
    assert drawn.max() <= 0.5 + 1e-5
    assert (drawn - sampler(wild(objective), noise, objective, generators=rngs)).abs().max() > 0.1


@pytest.mark.parametrize(
    "settings",
    [
        {"solver": solver, "scheduler_options": {"use_karras_sigmas": True}}
        for solver in ("dpmpp", "unipc", "euler")
    ],
    ids=name,
)
def test_drawn_values_are_inside_the_bounds_where_noise_levels_lie_between_timesteps(settings):
    objective = GaussianObjective(GaussianPath())
    noise = randn((2, 8, 8), generators(0, sample=range(4)))
    drawn = Sampler(num_steps=7, **settings)(wild(objective), noise, objective, bounds=(-1.0, 1.0))
    assert drawn.abs().max() <= 1 + 1e-5


@pytest.mark.parametrize("prediction", get_args(Prediction))
@pytest.mark.parametrize("settings", SAMPLERS, ids=name)
def test_bounds_change_nothing_where_the_estimates_are_inside_them(settings, prediction):
    objective = GaussianObjective(GaussianPath(), prediction=prediction)

    def draw(bounds):
        rngs = generators(0, sample=range(4))
        return Sampler(num_steps=20, **settings)(
            lambda x, t: prediction_of(objective, 0.9 * torch.sin(2 * x), x, t),
            randn((2, 8, 8), rngs),
            objective,
            generators=rngs,
            bounds=bounds,
        )

    torch.testing.assert_close(draw((-1.0, 1.0)), draw(None), rtol=0, atol=1e-5)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
@pytest.mark.parametrize("settings", SAMPLERS, ids=name)
def test_clipping_works_where_the_first_step_holds_no_signal(settings, prediction):
    objective = GaussianObjective(GaussianPath(zero_terminal_snr=True), prediction=prediction)
    rngs = generators(0, sample=range(4))
    drawn = Sampler(num_steps=5, **settings)(
        wild(objective), randn((2, 8, 8), rngs), objective, generators=rngs, bounds=(-1.0, 1.0)
    )
    assert drawn.isfinite().all()
    assert drawn.abs().max() <= 1 + 1e-5


@pytest.mark.parametrize(("solver", "noise_scale"), BRIDGES)
def test_bridges_clip_too(solver, noise_scale):
    objective = BridgeObjective(BridgePath(noise_scale=noise_scale), prediction="sample")
    source = randn((2, 8, 8), generators(1, sample=range(4)))

    def draw(size, bounds):
        sampler = BridgeSampler(solver=solver, num_steps=6)
        return sampler(
            lambda x, t: size * torch.sin(5 * x),
            source,
            objective,
            generators=generators(0, sample=range(4)),
            bounds=bounds,
        )

    assert torch.equal(draw(0.9, (-1.0, 1.0)), draw(0.9, None))
    assert draw(3.0, (-1.0, 1.0)).abs().max() <= 1 + 1e-5  # the last estimate, or a weighted mean of all
    assert (draw(3.0, (-1.0, 1.0)) - draw(3.0, None)).abs().max() > 0.1
