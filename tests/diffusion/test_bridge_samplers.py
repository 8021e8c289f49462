"""Bridge solvers: their identities in double precision, starts on the way, kept regions, messages."""

import math
from itertools import pairwise
from typing import get_args

import pytest
import torch

from diffusion.bridge_objectives import BridgeObjective, BridgePrediction
from diffusion.bridge_paths import BridgePath, Schedule
from diffusion.bridge_samplers import BridgeSampler, BridgeSolver
from diffusion.seeding import generators, randn

SOLVERS = get_args(BridgeSolver)
SCHEDULES = get_args(Schedule)
WALKS = [*((s, 0.0) for s in SOLVERS), ("posterior", 0.9), ("ode", 0.9)]  # solver, noise_scale
STOCHASTIC = [{"solver": "posterior"}, {"solver": "posterior", "eta": 0.4}, {"solver": "ode"}]


def make(*, prediction="sample", num_timesteps=100, **path):
    return BridgeObjective(BridgePath(num_timesteps=num_timesteps, **path), prediction=prediction)


def pair(batch=2):
    """clean, source (B, C, h, w)"""
    return torch.randn(2, batch, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Network:
    """A nonlinear denoiser that disagrees with itself between steps and notes what it was asked and said."""

    def __init__(self):
        self.inputs, self.timesteps, self.answers = [], [], []

    def __call__(self, x, timestep):
        answer = torch.tanh(1.7 * x) + 0.4 * torch.sin(3 * x.roll(1, dims=-1) + timestep[0] / 17)
        self.inputs.append(x)
        self.timesteps.append(timestep)
        self.answers.append(answer)
        return answer


# ---- identities without noise


@pytest.mark.parametrize("num_steps", [1, 2, 5, 20, 100])
def test_linear_cold_step_ends_on_the_mean_of_the_predictions(num_steps):
    _, source = pair()
    network = Network()
    drawn = BridgeSampler(solver="cold", num_steps=num_steps)(network, source, make())
    expected = source + torch.stack([answer - source for answer in network.answers]).mean(0)
    assert len(network.answers) == num_steps
    torch.testing.assert_close(drawn, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_cold_step_ends_on_the_predictions_weighted_by_the_steps_in_m(schedule):
    _, source = pair()
    network, objective = Network(), make(schedule=schedule)
    drawn = BridgeSampler(solver="cold", num_steps=7)(network, source, objective)
    levels = [objective.path.level(int(t[0])) for t in network.timesteps] + [0.0]
    moves = [
        (m - lower) * (x0 - source) for (m, lower), x0 in zip(pairwise(levels), network.answers, strict=True)
    ]
    torch.testing.assert_close(drawn, source + sum(moves), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_steps", [1, 7, 100])
def test_indi_ends_on_its_last_prediction(schedule, num_steps):
    _, source = pair()
    network = Network()
    drawn = BridgeSampler(solver="indi", num_steps=num_steps)(network, source, make(schedule=schedule))
    assert torch.equal(drawn, network.answers[-1])


def test_indi_step_mixes_by_the_share_of_the_time_that_is_left():
    """x <- (d / t) x0_hat + (1 - d / t) x with time t = m and step d."""
    _, source = pair()
    network = Network()
    BridgeSampler(solver="indi", num_steps=4)(network, source, make())
    for k in range(3):
        t, d = 1 - k / 4, 1 / 4
        expected = d / t * network.answers[k] + (1 - d / t) * network.inputs[k]
        torch.testing.assert_close(network.inputs[k + 1], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_predictor_that_never_changes_its_mind_stays_on_the_path(solver, schedule):
    """So cold = indi = posterior = ode there, at every step."""
    clean, source = pair()
    objective, seen = make(schedule=schedule), []

    def look(x, timestep):
        seen.append(timestep)
        level = objective.path.level(timestep)
        torch.testing.assert_close(x, objective.path.mix(clean, source, level), rtol=1e-12, atol=1e-12)
        return x

    BridgeSampler(solver=solver, num_steps=7)(lambda x, t: clean, source, objective, after_step=look)
    assert len(seen) == 7
    assert seen[-1] == -1


def test_solvers_differ_for_a_predictor_that_does():
    _, source = pair()
    drawn = [BridgeSampler(solver=s, num_steps=5)(Network(), source, make()) for s in ("cold", "indi", "ode")]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (drawn[first] - drawn[second]).abs().mean() > 0.01


@pytest.mark.parametrize(("solver", "noise_scale"), WALKS)
def test_one_step_is_the_clean_prediction_at_the_source(solver, noise_scale):
    _, source = pair()
    network = Network()
    drawn = BridgeSampler(solver=solver, num_steps=1)(
        network, source, make(noise_scale=noise_scale), generators=generators(0, sample=[0, 1])
    )
    assert torch.equal(network.inputs[0], source)
    assert network.timesteps[0].tolist() == [99, 99]
    assert torch.equal(drawn, network.answers[0])


@pytest.mark.parametrize("num_steps", [1, 2, 7, 100])
@pytest.mark.parametrize(("solver", "noise_scale"), WALKS)
@pytest.mark.parametrize("prediction", get_args(BridgePrediction))
def test_a_perfect_denoiser_is_exact_in_any_number_of_steps(prediction, solver, noise_scale, num_steps):
    clean, source = pair()

    def denoise(x, timestep):
        return {"sample": clean, "delta": clean - x, "grad": x - clean, "difference": source - clean}[
            prediction
        ]

    drawn = BridgeSampler(solver=solver, num_steps=num_steps)(
        denoise,
        source,
        make(prediction=prediction, noise_scale=noise_scale),
        generators=generators(0, sample=[0, 1]),
    )
    torch.testing.assert_close(drawn, clean, rtol=1e-12, atol=1e-12)


# ---- vanishing noise


def test_posterior_without_noise_is_indi_from_any_start():
    """Also from an image at the source's end that is not the source."""
    current, source = pair()
    for start in (1.0, 0.5):
        drawn = [
            BridgeSampler(solver=s, num_steps=6)(Network(), current, make(), source=source, start=start)
            for s in ("posterior", "indi")
        ]
        torch.testing.assert_close(drawn[0], drawn[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "limit"), [({"solver": "posterior"}, "indi"), ({"solver": "ode"}, "ode")]
)
def test_vanishing_noise_gives_the_deterministic_sampler(settings, limit):
    """For any network, with an error in proportion to the noise; no noise at all gives equality."""
    _, source = pair()
    expected = BridgeSampler(solver=limit, num_steps=6)(Network(), source, make())
    sampler = BridgeSampler(num_steps=6, **settings)
    assert torch.equal(sampler(Network(), source, make()), expected)
    errors = []
    for scale in (1e-4, 1e-7):
        drawn = sampler(Network(), source, make(noise_scale=scale), generators=generators(0, sample=[0, 1]))
        errors.append((drawn - expected).abs().max().item())
    assert 0 < errors[0] < 1e-2
    assert errors[0] / errors[1] == pytest.approx(1000, rel=0.05)


# ---- batches, starts, regions


@pytest.mark.parametrize("settings", STOCHASTIC)
@pytest.mark.parametrize("start", [1.0, 0.5])
def test_stochastic_samples_do_not_depend_on_the_batch(settings, start):
    objective = make(noise_scale=0.9)
    sources = randn((3, 4, 4), generators(3, sample=range(9)))

    def draw(samples):
        source = sources[samples]
        return BridgeSampler(num_steps=5, **settings)(
            Network(),
            0.5 * source if start < 1 else source,
            objective,
            source=source,
            start=start,
            generators=generators(5, sample=samples),
        )

    torch.testing.assert_close(draw([1, 2, 3])[2:], draw([3]), rtol=1e-6, atol=1e-6)
    assert draw([1, 1]).diff(dim=0).abs().max() < 1e-6


def test_noise_brings_several_results_for_one_source():
    source = torch.zeros(4, 3, 4, 4)
    for settings in STOCHASTIC:
        drawn = BridgeSampler(num_steps=5, **settings)(
            Network(), source, make(noise_scale=0.9), generators=generators(0, sample=range(4))
        )
        assert drawn.std(dim=0).mean() > 0.1
    without = BridgeSampler(solver="posterior", num_steps=5)(
        Network(), source, make(), generators=generators(0, sample=range(4))
    )
    assert without.std(dim=0).max() < 1e-6


@pytest.mark.parametrize(
    ("num_steps", "start", "expected"),
    [
        (1, 1.0, [99]),
        (5, 1.0, [99, 79, 59, 39, 19]),
        (100, 1.0, list(range(99, -1, -1))),
        (5, 0.5, [49, 39, 29, 19, 9]),
        (5, 0.504, [49, 39, 29, 19, 9]),
        (2, 0.999, [98, 48]),
        (5, 0.03, [2, 1, 0]),
        (5, 1e-9, [0]),
    ],
)
def test_timesteps_are_even_and_begin_at_the_nearest_level(num_steps, start, expected):
    sampler = BridgeSampler(num_steps=num_steps)
    assert sampler.timesteps(BridgePath(num_timesteps=100), start=start) == expected


@pytest.mark.parametrize("num_timesteps", [7, 50, 999, 1000])
def test_timesteps_never_repeat_whatever_their_number(num_timesteps):
    path = BridgePath(num_timesteps=num_timesteps)
    for num_steps in range(1, min(num_timesteps, 60) + 1):
        steps = [*BridgeSampler(num_steps=num_steps).timesteps(path), -1]
        gaps = {here - there for here, there in pairwise(steps)}
        assert steps[0] == num_timesteps - 1
        assert len(steps) == num_steps + 1
        assert min(gaps) > 0
        assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_start_on_the_way_goes_on_from_the_given_image(solver):
    clean, source = pair()
    objective = make(schedule="cosine")
    first = objective.path.nearest(0.4)
    current = objective.path.mix(clean, source, objective.path.level(first))
    seen = []
    drawn = BridgeSampler(solver=solver, num_steps=5)(
        lambda x, t: seen.append((x, int(t[0]))) or clean, current, objective, source=source, start=0.4
    )
    assert len(seen) == 5
    assert seen[0][1] == first
    assert torch.equal(seen[0][0], current)
    torch.testing.assert_close(drawn, clean, rtol=1e-12, atol=1e-12)


def test_a_start_on_a_noisy_way_gets_that_levels_noise():
    _, source = pair(batch=512)
    network = Network()
    BridgeSampler(solver="ode", num_steps=1)(
        network,
        source,
        make(noise_scale=0.9),
        source=source,
        start=0.3,
        generators=generators(0, sample=range(512)),
    )
    z = (network.inputs[0] - source) / (0.9 * math.sqrt(0.3 * 0.7))
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / z.numel())


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_region_is_kept_by_the_hook(solver):
    known, source = pair()
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:, :2] = True
    objective, network = make(), Network()
    path = objective.path

    def keep(x, timestep):
        return torch.where(mask, path.mix(known, source, path.level(timestep)), x)

    drawn = BridgeSampler(solver=solver, num_steps=5)(network, source, objective, after_step=keep)
    assert torch.equal(drawn[..., :2], known[..., :2])
    for x, timestep in zip(network.inputs, network.timesteps, strict=True):
        on_path = path.mix(known, source, path.level(int(timestep[0])))
        torch.testing.assert_close(x[..., :2], on_path[..., :2], rtol=1e-12, atol=1e-12)
    free = BridgeSampler(solver=solver, num_steps=5)(Network(), source, objective)
    assert (drawn[..., 2:] - free[..., 2:]).abs().max() > 0.01  # the network saw the kept region


def test_low_precision_predictions_are_carried_in_the_sources_precision():
    asked, source = [], torch.randn(2, 3, 4, 4)
    sampler = BridgeSampler(num_steps=3)
    drawn = sampler(lambda x, t: asked.append((x, t)) or torch.sin(x).bfloat16(), source, make())
    assert all(x.dtype == torch.float32 and t.dtype == torch.int64 and t.shape == (2,) for x, t in asked)
    assert torch.equal(drawn, sampler(lambda x, t: torch.sin(x).bfloat16().float(), source, make()))


# ---- messages


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"solver": "ddim"}, "sampler.solver is 'ddim'; expected cold, indi, posterior or ode"),
        ({"num_steps": 0}, "sampler.num_steps is 0; expected at least 1"),
        ({"solver": "posterior", "eta": 1.5}, r"sampler.eta is 1.5; expected a share in \[0, 1\]"),
        (
            {"solver": "ode", "eta": 0.5},
            "eta=0.5 has no effect with solver 'ode'; set sampler.solver=posterior",
        ),
    ],
)
def test_bad_settings_are_named(settings, text):
    with pytest.raises(ValueError, match=text):
        BridgeSampler(**settings)


@pytest.mark.parametrize(
    ("settings", "path", "call", "text"),
    [
        (
            {"num_steps": 20},
            {"num_timesteps": 10},
            {},
            "num_steps is 20, but the path has 10 timesteps; set sampler.num_steps=10 or fewer",
        ),
        (
            {"solver": "indi"},
            {"noise_scale": 0.5},
            {},
            "'indi' walks without noise, but the path has noise_scale=0.5; set sampler.solver=posterior or ode",
        ),
        ({"solver": "ode"}, {"noise_scale": 0.5}, {}, "needs generators, one for each image; got None"),
        ({}, {}, {"start": 0.0}, r"start is 0.0; expected a level in \(0, 1\]"),
        ({}, {}, {"start": 1.2}, "start is 1.2"),
        ({}, {}, {"start": 0.4}, "start=0.4 begins on the way to the source; give source=, or start=1"),
    ],
)
def test_calls_that_cannot_work_are_named(settings, path, call, text):
    _, source = pair()
    with pytest.raises(ValueError, match=text):
        BridgeSampler(**{"num_steps": 5, **settings})(Network(), source, make(**path), **call)
