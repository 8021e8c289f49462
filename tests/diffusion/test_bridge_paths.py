"""The bridge path: schedules in closed form, its noise against the published ones, its posterior against Bayes' rule."""

import math
from typing import get_args

import numpy as np
import pytest
import torch

from diffusion.bridge_paths import BridgePath, Schedule

SCHEDULES = get_args(Schedule)
LEVELS = [(1.0, 0.4), (0.999, 0.2), (0.7, 0.69), (0.5, 0.01), (0.3, 0.0)]  # m_t, m_s


def all_levels(path):
    return np.array([path.level(t) for t in range(path.num_timesteps)])


def i2sb_betas():
    """The symmetric betas of I2SB's defaults: 1000 steps, from 1e-4 towards 0.3 / 1000, mirrored halfway."""
    half = (np.linspace(math.sqrt(1e-4), math.sqrt(0.3 / 1000), 1000) ** 2)[:500]
    return np.concatenate([half, half[::-1]])


@pytest.mark.parametrize("num_timesteps", [1, 2, 100, 1000])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_levels_rise_from_above_the_clean_tensor_to_exactly_the_source(schedule, num_timesteps):
    path = BridgePath(num_timesteps=num_timesteps, schedule=schedule)
    levels = all_levels(path)
    assert path.level(-1) == 0.0
    assert levels[0] > 0
    assert levels[-1] == 1.0
    assert (np.diff(levels) > 0).all()
    np.testing.assert_allclose(path.levels, levels, rtol=1e-7)


@pytest.mark.parametrize("num_timesteps", [100, 1000])
def test_schedules_in_closed_form(num_timesteps):
    u = np.arange(1, num_timesteps + 1) / num_timesteps
    kept = 0.92 ** (100 * u)
    expected = {
        "linear": u,
        "cosine": 0.5 * np.sin(np.pi * (u - 0.5)) + 0.5,  # BBDM's sine
        "geometric": (1 - kept) / (1 - kept[-1]),
    }
    for schedule, levels in expected.items():
        decay = {"decay": 0.92} if schedule == "geometric" else {}
        path = BridgePath(num_timesteps=num_timesteps, schedule=schedule, **decay)
        np.testing.assert_allclose(all_levels(path), levels, rtol=1e-12, atol=1e-15)


def test_geometric_is_the_power_of_the_step_up_to_what_is_left_at_the_end():
    path = BridgePath(num_timesteps=100, schedule="geometric")
    kept = 0.9 ** np.arange(1, 101)
    assert np.abs(1 - all_levels(path) - kept).max() <= kept[-1]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_last_step_is_the_source_bit_for_bit(schedule):
    path = BridgePath(num_timesteps=20, schedule=schedule, noise_scale=1.3)
    clean, source, noise = torch.randn(3, 2, 4, 3, 3)
    assert torch.equal(path.corrupt(clean, noise, torch.tensor([19, 19]), source), source)


def test_corrupt_is_the_mixture_plus_noise():
    path = BridgePath(schedule="cosine", noise_scale=0.7).double()
    timestep = torch.tensor([0, 400, 998])
    clean, source, noise = torch.randn(3, 3, 4, 3, 3, dtype=torch.float64)
    x_t = path.corrupt(clean, noise, timestep, source)
    for row, t in enumerate(timestep.tolist()):
        m = path.level(t)
        expected = path.mix(clean[row], source[row], m) + 0.7 * math.sqrt(m * (1 - m)) * noise[row]
        torch.testing.assert_close(x_t[row], expected, rtol=1e-6, atol=1e-6)


def test_the_noise_may_be_left_out_only_where_there_is_none():
    clean, source = torch.randn(2, 2, 4, 3, 3)
    timestep = torch.tensor([1, 5])
    plain = BridgePath(num_timesteps=10)
    ignored = plain.corrupt(clean, torch.randn(2, 4, 3, 3), timestep, source)
    assert torch.equal(plain.corrupt(clean, None, timestep, source), ignored)
    with pytest.raises(ValueError, match="noise_scale=0.5 needs noise, got None"):
        BridgePath(num_timesteps=10, noise_scale=0.5).corrupt(clean, None, timestep, source)


@pytest.mark.parametrize("max_var", [0.5, 1.0])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_variance_is_bbdms(schedule, max_var):
    path = BridgePath(schedule=schedule, noise_scale=math.sqrt(2 * max_var))
    m = all_levels(path)
    stds = np.array([path.std(level) for level in m])
    np.testing.assert_allclose(stds**2, 2 * (m - m**2) * max_var, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(path.stds, stds, rtol=1e-6)
    assert abs(stds.max() - path.noise_scale / 2) < 1e-6


def test_coefficients_are_the_gaussian_product_of_i2sb():
    """b^2/(f^2+b^2), f^2/(f^2+b^2) and f^2 b^2/(f^2+b^2) with beta integrated numerically."""
    u = (np.arange(100_000) + 0.5) / 100_000
    beta = 1000 * (0.01 + (math.sqrt(3e-4) - 0.01) * np.minimum(u, 1 - u)) ** 2
    f2 = np.cumsum(beta)[99::100] / 100_000  # at the ends of 1000 steps
    b2 = f2[-1] - f2
    path = BridgePath(schedule="i2sb", noise_scale=math.sqrt(f2[-1]))
    m = all_levels(path)
    np.testing.assert_allclose(1 - m, b2 / (f2 + b2), atol=1e-9)
    np.testing.assert_allclose(m, f2 / (f2 + b2), atol=1e-9)
    np.testing.assert_allclose([path.std(level) ** 2 for level in m], f2 * b2 / (f2 + b2), atol=1e-9)


def test_i2sbs_own_thousand_steps_are_within_one_step_of_ours():
    """Its code counts the present step's beta in f^2 and in b^2, so that their sum varies by one beta."""
    betas = i2sb_betas()
    f2, b2 = np.cumsum(betas), np.cumsum(betas[::-1])[::-1]
    path = BridgePath(schedule="i2sb", noise_scale=0.3756)
    m = all_levels(path)
    assert abs(betas.sum() - 0.3756**2) < 1e-4
    variances = np.array([path.std(level) ** 2 for level in m])
    assert np.abs(m - f2 / (f2 + b2)).max() < 1e-3  # one of a thousand steps
    assert np.abs(variances - f2 * b2 / (f2 + b2)).max() < betas.max()


@pytest.mark.parametrize(("level", "lower"), LEVELS[1:])
def test_posterior_is_bayes_rule_on_the_brownian_bridge(level, lower):
    """Conditioning the joint normal of (x_s, x_t), covariance k^2 m_s (1 - m_t), by its Schur complement."""
    path = BridgePath(noise_scale=0.9)
    cov = 0.9**2 * np.array(
        [[lower * (1 - lower), lower * (1 - level)], [lower * (1 - level), level * (1 - level)]]
    )
    carry, std = path.posterior(level, lower)
    assert carry == pytest.approx(cov[0, 1] / cov[1, 1], rel=1e-12)
    assert std**2 == pytest.approx(cov[0, 0] - cov[0, 1] ** 2 / cov[1, 1], rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(("level", "lower"), LEVELS[1:])
def test_posterior_is_the_reverse_step_of_bbdm_and_of_i2sb(level, lower):
    path = BridgePath(noise_scale=math.sqrt(2))
    carry, std = path.posterior(level, lower)
    # BBDM, in variances of max_var = 1
    var, var_lower = 2 * (level - level**2), 2 * (lower - lower**2)
    bbdm = (var - var_lower * (1 - level) ** 2 / (1 - lower) ** 2) * var_lower / var
    assert std**2 == pytest.approx(bbdm, rel=1e-9, abs=1e-15)
    assert carry == pytest.approx(math.sqrt((var_lower - bbdm) / var), rel=1e-9, abs=1e-9)
    # I2SB, in forward variances f^2 = 2 m: the product of N(x_0, f_s^2) and N(x_t, f_t^2 - f_s^2)
    f2_lower, delta2 = 2 * lower, 2 * (level - lower)
    assert carry == pytest.approx(f2_lower / (f2_lower + delta2), rel=1e-12)
    assert std**2 == pytest.approx(f2_lower * delta2 / (f2_lower + delta2), rel=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("level", "lower"), LEVELS)
def test_posterior_composed_with_the_marginal_is_the_marginal(level, lower, eta):
    """The mean is D(x_0, m_s) by construction; c^2 s_t^2 + std^2 = s_s^2 is the variance."""
    path = BridgePath(noise_scale=0.9)
    carry, std = path.posterior(level, lower, eta=eta)
    composed = carry**2 * path.std(level) ** 2 + std**2
    assert composed == pytest.approx(path.std(lower) ** 2, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(("level", "middle", "lower"), [(1.0, 0.5, 0.1), (0.9, 0.4, 0.39), (0.6, 0.2, 0.0)])
def test_two_steps_are_one_step(level, middle, lower, eta):
    """Markov: x_t -> x_r -> x_s is normal with c = c_tr c_rs and variance c_rs^2 std_tr^2 + std_rs^2."""
    path = BridgePath(noise_scale=0.9)
    first, std_first = path.posterior(level, middle, eta=eta)
    second, std_second = path.posterior(middle, lower, eta=eta)
    carry, std = path.posterior(level, lower, eta=eta)
    assert math.hypot(second * std_first, std_second) == pytest.approx(std, rel=1e-12, abs=1e-15)
    if level < 1:  # the source has no distance to carry on
        assert first * second == pytest.approx(carry, rel=1e-12)


def test_no_noise_leaves_the_share_that_is_carried_on():
    noisy, plain = BridgePath(noise_scale=0.9), BridgePath()
    for eta in (0.0, 0.5, 1.0):
        assert plain.posterior(0.8, 0.3, eta=eta) == (noisy.posterior(0.8, 0.3, eta=eta)[0], 0.0)


def test_nearest_timestep():
    path = BridgePath(num_timesteps=10)
    assert [path.nearest(m) for m in (1e-9, 0.1, 0.31, 0.5, 0.96, 1.0)] == [0, 0, 2, 4, 8, 9]


def test_the_table_moves_with_the_module_and_stays_out_of_checkpoints():
    path = BridgePath(num_timesteps=10, noise_scale=1.0)
    assert path.state_dict() == {}
    assert [v.dtype for v in path.double().m_s(torch.tensor([3]))] == [torch.float64] * 2


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"schedule": "sine"}, "path.schedule is 'sine'; expected linear, geometric, cosine or i2sb"),
        ({"num_timesteps": 0}, "path.num_timesteps is 0; expected at least 1"),
        ({"noise_scale": -0.1}, "path.noise_scale is -0.1; expected a finite number that is 0 or larger"),
        ({"noise_scale": float("nan")}, "path.noise_scale is nan"),
        ({"schedule": "geometric", "decay": 1.0}, "path.decay is 1.0; expected a share between 0 and 1"),
        ({"decay": 0.8}, "path.decay=0.8 has no effect with schedule 'linear'; set path.schedule=geometric"),
        ({"schedule": "geometric", "decay": 0.5}, "decay=0.5 has timesteps that float32 cannot tell apart"),
        ({"schedule": "cosine", "num_timesteps": 100_000}, "set path.num_timesteps lower"),
    ],
)
def test_bad_settings_are_named(settings, text):
    with pytest.raises(ValueError, match=text):
        BridgePath(**settings)
