"""Timesteps and changes between steps, for every solver on a Gaussian path."""

import math
from typing import get_args

import pytest
import torch

from diffusion.objectives import GaussianObjective
from diffusion.paths import GaussianPath
from diffusion.samplers import Sampler, Solver
from diffusion.seeding import generators, randn

SETTINGS = [*({"solver": s} for s in get_args(Solver)), {"solver": "ddim", "eta": 1.0}]
every_solver = pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))


def make(*, prediction="sample", zero_snr=True, **path):
    return GaussianObjective(GaussianPath(zero_terminal_snr=zero_snr, **path), prediction=prediction)


def network(x, timestep):
    """A clean estimate that changes from step to step."""
    return torch.tanh(1.3 * x) + 0.3 * torch.sin(3 * x.roll(1, dims=-1) + timestep.view(-1, 1, 1, 1) / 170)


def timesteps_of(sampler, objective):
    return sampler.scheduler(objective).timesteps.long().tolist()


# ---- timesteps


@pytest.mark.parametrize("solver", get_args(Solver))
@pytest.mark.parametrize("num_timesteps", [10, 100])
def test_timesteps_fall_from_the_last_one_and_are_as_many_as_asked_for(solver, num_timesteps):
    """diffusers' own trailing spacing gives 30 timesteps for 29 of 100, and the last of them is -1."""
    objective = make(num_timesteps=num_timesteps)
    for num_steps in range(1, num_timesteps + 1):
        steps = timesteps_of(Sampler(solver=solver, num_steps=num_steps), objective)
        assert len(steps) == num_steps
        assert steps[0] == num_timesteps - 1
        assert all(here > there for here, there in zip(steps, [*steps[1:], -1], strict=True))


@pytest.mark.parametrize("solver", ["ddpm", "dpmpp", "unipc", "euler"])
def test_the_number_of_steps_that_diffusers_spaces_wrongly_is_exact_too(solver):
    objective, clean = make(num_timesteps=100), torch.linspace(-1, 1, 64).view(1, 1, 8, 8)
    drawn = Sampler(solver=solver, num_steps=29)(
        lambda x, t: clean, torch.randn(1, 1, 8, 8), objective, generators=generators(0, sample=[0])
    )
    torch.testing.assert_close(drawn, clean, rtol=0, atol=1e-4)


def test_more_steps_than_the_path_has_are_named():
    with pytest.raises(ValueError, match="num_steps is 20, but the path has 10 timesteps; give that many or"):
        Sampler(num_steps=20)(network, torch.randn(1, 1, 2, 2), make(num_timesteps=10))


# ---- after each step


@every_solver
def test_what_comes_after_a_step_is_on_the_path_at_the_timestep_named(settings):
    """With the true clean tensor, (x - alpha x_0) / sigma is standard normal; the last x is x_0."""
    objective, rngs = make(), generators(0, sample=range(64))
    clean = torch.linspace(-1, 1, 64).view(1, 1, 8, 8).expand(64, -1, -1, -1)
    sampler, noise = Sampler(num_steps=10, **settings), randn((1, 8, 8), rngs)
    steps, trail = timesteps_of(sampler, objective), []
    sampler(
        lambda x, t: clean,
        noise,
        objective,
        generators=rngs,
        after_step=lambda x, t: trail.append((x, t)) or x,
    )
    assert [timestep for _, timestep in trail] == [*steps[1:], -1]
    torch.testing.assert_close(trail[-1][0], clean, rtol=0, atol=1e-4)
    for x, timestep in trail[:-1]:
        alpha, sigma = objective.path.alpha_sigma(torch.tensor(timestep))
        z = (x - alpha * clean) / sigma
        assert abs(z.mean()) < 4 / math.sqrt(z.numel())
        assert abs(z.var() - 1) < 4 * math.sqrt(2 / z.numel())
        if (
            settings["solver"] != "ddpm" and "eta" not in settings
        ):  # these add no noise: theirs stays what it was
            torch.testing.assert_close(z, noise, rtol=0, atol=2e-3)


@every_solver
def test_looking_on_changes_nothing(settings):
    objective, rngs = make(), generators(0, sample=range(2))
    noise = randn((3, 8, 8), rngs)

    def draw(**look):
        sampler = Sampler(num_steps=12, **settings)
        return sampler(network, noise, objective, generators=generators(1, sample=range(2)), **look)

    torch.testing.assert_close(draw(after_step=lambda x, t: x), draw(), rtol=0, atol=1e-4)


@every_solver
def test_a_region_kept_after_each_step_is_kept(settings):
    objective, rngs = make(), generators(0, sample=range(2))
    noise, known = randn((3, 8, 8), rngs), torch.linspace(-2, 2, 64).view(1, 1, 8, 8).expand(2, 3, -1, -1)
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:, :4] = True
    asked = []

    def on_path(timestep):
        if timestep < 0:
            return known
        return objective.path.corrupt(known, noise, torch.full((2,), timestep))

    def draw(**keep):
        sampler = Sampler(num_steps=10, **settings)
        return sampler(
            lambda x, t: asked.append((x, int(t[0]))) or network(x, t),
            noise,
            objective,
            generators=generators(1, sample=range(2)),
            **keep,
        )

    drawn = draw(after_step=lambda x, t: torch.where(mask, on_path(t), x))
    assert torch.equal(drawn[..., :4], known[..., :4])
    for x, timestep in asked[1:]:
        torch.testing.assert_close(x[..., :4], on_path(timestep)[..., :4], rtol=1e-4, atol=1e-4)
    assert (drawn[..., 4:] - draw()[..., 4:]).abs().max() > 0.01  # the network saw the kept region


def test_unipc_goes_on_from_what_was_changed():
    """Its corrector starts from before the change; of order 1 and without it, it steps as DDIM does."""
    objective, noise = make(), torch.randn(2, 3, 8, 8)

    def change(x, timestep):
        return x if timestep < 0 else 0.5 * x + 0.1

    steps = [
        Sampler(num_steps=5, **settings)(network, noise, objective, after_step=change)
        for settings in ({"solver": "unipc", "scheduler_options": {"solver_order": 1}}, {"solver": "ddim"})
    ]
    torch.testing.assert_close(*steps, rtol=0, atol=2e-3)
