"""Bridge solvers with noise: the law of the bridge, and normal data whose exact denoiser is known."""

import math

import pytest
import torch

from diffusion.bridge_objectives import BridgeObjective
from diffusion.bridge_paths import BridgePath
from diffusion.bridge_samplers import BridgeSampler
from diffusion.seeding import generators, randn

STOCHASTIC = [{"solver": "posterior"}, {"solver": "posterior", "eta": 0.4}, {"solver": "ode"}]
MEAN, STD = 0.5, 0.8  # of the normal data


def make(*, num_timesteps=1000, schedule="cosine", noise_scale=1.0):
    path = BridgePath(num_timesteps=num_timesteps, schedule=schedule, noise_scale=noise_scale)
    return BridgeObjective(path, prediction="sample")


def pair(batch=2):
    """clean, source (B, C, h, w)"""
    return torch.randn(2, batch, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("settings", STOCHASTIC)
def test_steps_with_the_true_clean_tensor_keep_the_law_of_the_bridge(settings):
    """Mean and variance at every level; for the Markov posterior also the correlation between levels."""
    clean, source = pair(batch=512)
    objective = make(num_timesteps=100, schedule="linear", noise_scale=0.9)
    path, trail = objective.path, {}

    def look(x, timestep):
        if timestep >= 0:
            level = path.level(timestep)
            trail[level] = (x - path.mix(clean, source, level)) / path.std(level)
        return x

    BridgeSampler(num_steps=5, **settings)(
        lambda x, t: clean, source, objective, generators=generators(0, sample=range(512)), after_step=look
    )
    count = clean.numel()
    for z in trail.values():
        assert abs(z.mean()) < 4 / math.sqrt(count)
        assert abs(z.var() - 1) < 4 * math.sqrt(2 / count)
    if settings == {"solver": "posterior"}:
        m, lower = list(trail)[0], list(trail)[2]
        expected = math.sqrt(lower * (1 - m) / (m * (1 - lower)))
        assert abs((trail[m] * trail[lower]).mean() - expected) < 4 / math.sqrt(count)
    if settings == {"solver": "ode"}:
        first, *others = trail.values()
        for z in others:
            torch.testing.assert_close(z, first, rtol=1e-9, atol=1e-9)


def normal_denoiser(path, source, mean, var):
    """E[x_0 | x_t, y] where x_0 given y is normal with this mean and variance, which may depend on y."""

    def denoise(x, timestep):
        m = path.level(int(timestep[0]))
        kept, s2 = 1 - m, path.std(m) ** 2
        gain = kept * var / (kept**2 * var + s2) if m < 1 else 0.0
        return mean + gain * (x - m * source - kept * mean)

    return denoise


def blind_denoiser(path, slope, offset, spread):
    """E[x_0 | x_t] without y, where y = slope x_0 + offset + spread times noise."""

    def denoise(x, timestep):
        m = path.level(int(timestep[0]))
        share = 1 - m + m * slope
        var = share**2 * STD**2 + m**2 * spread**2 + path.std(m) ** 2
        return MEAN + share * STD**2 / var * (x - share * MEAN - m * offset)

    return denoise


@pytest.mark.parametrize("settings", STOCHASTIC)
def test_draws_normal_data_from_an_unrelated_source(settings):
    """100 steps: mean within 0.01, standard deviation within 3 %."""
    objective = make()
    source = torch.full((64, 4, 16, 16), -0.7, dtype=torch.float64)
    denoise = normal_denoiser(objective.path, source, MEAN, STD**2)
    drawn = BridgeSampler(num_steps=100, **settings)(
        denoise, source, objective, generators=generators(0, sample=range(64))
    )
    assert abs(drawn.mean().item() - MEAN) < 0.01
    assert drawn.std().item() == pytest.approx(STD, rel=0.03)


def linear_data(slope=0.6, offset=0.2, spread=0.3):
    """clean ~ N(MEAN, STD^2), source = slope clean + offset + spread noise, and their relation."""
    clean = MEAN + STD * randn((4, 16, 16), generators(7, sample=range(64)), dtype=torch.float64)
    noise = randn((4, 16, 16), generators(8, sample=range(64)), dtype=torch.float64)
    return clean, slope * clean + offset + spread * noise, (slope, offset, spread)


def covariance(a, b):
    return ((a - a.mean()) * (b - b.mean())).mean().item()


@pytest.mark.parametrize("settings", STOCHASTIC)
def test_draws_normal_data_that_belong_to_their_source(settings):
    """50 steps of a denoiser that knows y: mean within 0.01, standard deviation and covariance with y within 3 %."""
    clean, source, (slope, offset, spread) = linear_data()
    gain = slope * STD**2 / (slope**2 * STD**2 + spread**2)
    mean, var = MEAN + gain * (source - slope * MEAN - offset), STD**2 * (1 - gain * slope)
    objective = make()
    drawn = BridgeSampler(num_steps=50, **settings)(
        normal_denoiser(objective.path, source, mean, var),
        source,
        objective,
        generators=generators(0, sample=range(64)),
    )
    assert abs(drawn.mean().item() - clean.mean().item()) < 0.01
    assert drawn.std().item() == pytest.approx(clean.std().item(), rel=0.03)
    assert covariance(drawn, source) == pytest.approx(covariance(clean, source), rel=0.03)


def test_a_network_that_does_not_see_the_source_needs_the_markov_posterior():
    """It keeps the law of the data but forgets which source it came from; `ode` then misses even the law."""
    clean, source, relation = linear_data()
    objective = make()
    denoise = blind_denoiser(objective.path, *relation)
    sources = {"generators": generators(0, sample=range(64))}
    drawn = BridgeSampler(solver="posterior", num_steps=100)(denoise, source, objective, **sources)
    flow = BridgeSampler(solver="ode", num_steps=100)(denoise, source, objective, **sources)
    assert drawn.std().item() == pytest.approx(clean.std().item(), rel=0.03)
    assert covariance(drawn, source) < 0.6 * covariance(clean, source)
    assert flow.std().item() > 1.05 * clean.std().item()


def test_flow_converges_in_first_order():
    """Every result is an affine function of the one draw of noise; its slope is the standard deviation, exactly."""
    objective = make()
    source = torch.full((2, 1, 8, 8), -0.7, dtype=torch.float64)
    denoise = normal_denoiser(objective.path, source, MEAN, STD**2)
    noise = randn((1, 8, 8), generators(0, sample=[0, 1]), dtype=torch.float64)
    errors = []
    for num_steps in (50, 100, 200):
        drawn = BridgeSampler(solver="ode", num_steps=num_steps)(
            denoise, source, objective, generators=generators(0, sample=[0, 1])
        )
        slope = (drawn - drawn.mean()) / (noise - noise.mean())
        assert slope.std() < 1e-9
        errors.append(STD - slope.mean().item())
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.25)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.25)


def test_flow_of_vanishing_noise_moves_with_the_noise_free_velocity():
    """With the exact denoiser for normal data, `ode` is the step in y - x0_hat that `cold` takes, up to the noise."""
    _, source = pair()
    trails = {}
    for solver, scale in (("cold", 0.0), ("ode", 1e-8)):
        objective, trail = make(noise_scale=scale), []
        denoise = normal_denoiser(objective.path, source, MEAN, STD**2)
        BridgeSampler(solver=solver, num_steps=8)(
            denoise,
            source,
            objective,
            generators=generators(0, sample=[0, 1]),
            after_step=lambda x, t, trail=trail: trail.append(x) or x,
        )
        trails[solver] = torch.stack(trail)
    torch.testing.assert_close(trails["ode"], trails["cold"], rtol=0, atol=1e-6)
