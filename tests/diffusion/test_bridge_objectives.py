"""Bridge objectives: each prediction inverts to the clean sample, and the stated equivalences hold."""

from typing import get_args

import pytest
import torch

from diffusion.bridge_objectives import BridgeObjective, BridgePrediction
from diffusion.bridge_paths import BridgePath, Schedule

SCHEDULES = get_args(Schedule)
PREDICTIONS = get_args(BridgePrediction)
TIMESTEP = torch.tensor([0, 10, 500, 998, 999])


def draw():
    """clean, source, noise (B, C, h, w)"""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, len(TIMESTEP), 2, 3, 3, generator=generator, dtype=torch.float64)


def targets(path, clean, source, noise):
    return {
        name: BridgeObjective(path, prediction=name).target(clean, noise, TIMESTEP, source)
        for name in PREDICTIONS
    }


@pytest.mark.parametrize("noise_scale", [0.0, 0.7])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_true_prediction_gives_back_the_clean_sample(prediction, schedule, noise_scale):
    path = BridgePath(schedule=schedule, noise_scale=noise_scale).double()
    clean, source, noise = draw()
    objective = BridgeObjective(path, prediction=prediction)
    x_t = path.corrupt(clean, noise, TIMESTEP, source)
    restored = objective.to_clean(objective.target(clean, noise, TIMESTEP, source), x_t, TIMESTEP, source)
    torch.testing.assert_close(restored, clean, rtol=1e-12, atol=1e-12)


def test_targets_with_noise_are_the_stated_ones():
    path = BridgePath(noise_scale=0.7).double()
    clean, source, noise = draw()
    found = targets(path, clean, source, noise)
    m, s = (v.view(-1, 1, 1, 1) for v in path.m_s(TIMESTEP))
    torch.testing.assert_close(found["grad"], m * (source - clean) + s * noise, rtol=1e-12, atol=1e-12)
    assert torch.equal(found["delta"], -found["grad"])
    assert torch.equal(found["difference"], source - clean)
    assert torch.equal(found["sample"], clean)


def test_targets_without_noise_differ_by_the_level():
    path = BridgePath().double()
    clean, source, _ = draw()
    found = targets(path, clean, source, None)
    m = path.m_s(TIMESTEP)[0].view(-1, 1, 1, 1)
    torch.testing.assert_close(found["delta"], m * (clean - source), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found["grad"], m * found["difference"], rtol=1e-12, atol=1e-12)


def test_difference_is_the_velocity_of_the_mixture():
    """A central difference in m of D(x_0, m)."""
    path = BridgePath()
    clean, source, _ = draw()
    velocity = (path.mix(clean, source, 0.6) - path.mix(clean, source, 0.4)) / 0.2
    target = BridgeObjective(path, prediction="difference").target(clean, None, TIMESTEP, source)
    torch.testing.assert_close(velocity, target, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("weighting", ["uniform", "i2sb"])
def test_one_wrong_clean_estimate_costs_the_same_in_every_prediction(norm, weighting):
    path = BridgePath(noise_scale=0.7).double()
    clean, source, noise = draw()
    x_t, wrong = path.corrupt(clean, noise, TIMESTEP, source), clean + 0.1 * noise
    stated = {"sample": wrong, "delta": wrong - x_t, "grad": x_t - wrong, "difference": source - wrong}
    losses = [
        BridgeObjective(path, prediction=name, weighting=weighting, norm=norm).loss(
            stated[name], clean, noise, TIMESTEP, source
        )
        for name in PREDICTIONS
    ]
    error = 0.1 * noise
    expected = (error.abs() if norm == "l1" else error.square()).mean((1, 2, 3))
    if weighting == "i2sb":
        m = path.m_s(TIMESTEP)[0]
        expected = expected / (m.sqrt() if norm == "l1" else m)
    for loss in losses:
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_i2sb_weighting_is_the_error_of_its_scaled_target(norm):
    """I2SB regresses (x_t - x_0) / f_t with f_t^2 = noise_scale^2 m_t, unweighted; the constant is noise_scale."""
    path = BridgePath(schedule="i2sb", noise_scale=0.3756).double()
    clean, source, noise = draw()
    objective = BridgeObjective(path, prediction="grad", weighting="i2sb", norm=norm)
    target = objective.target(clean, noise, TIMESTEP, source)
    pred = target + 0.3 * noise
    std_fwd = 0.3756 * path.m_s(TIMESTEP)[0].sqrt().view(-1, 1, 1, 1)
    scaled = (pred - target) / std_fwd
    expected = (
        scaled.abs().mean((1, 2, 3)) * 0.3756 if norm == "l1" else scaled.square().mean((1, 2, 3)) * 0.3756**2
    )
    torch.testing.assert_close(
        objective.loss(pred, clean, noise, TIMESTEP, source), expected, rtol=1e-4, atol=0
    )


def test_loss_is_float32_for_low_precision_predictions():
    path = BridgePath(noise_scale=0.7)
    clean, source, noise = draw().float()
    pred = torch.zeros_like(clean, dtype=torch.bfloat16)
    loss = BridgeObjective(path, prediction="sample").loss(pred, clean, noise, TIMESTEP, source)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, clean.square().mean((1, 2, 3)))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"prediction": "x0"},
            "objective.prediction is 'x0'; expected delta, difference, sample or grad",
        ),
        ({"weighting": "snr"}, "objective.weighting is 'snr'; expected uniform or i2sb"),
        ({"norm": "huber"}, "objective.norm is 'huber'; expected l1 or l2"),
    ],
)
def test_unknown_names_are_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        BridgeObjective(BridgePath(num_timesteps=10), **settings)
