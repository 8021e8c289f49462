"""Objectives: each prediction inverts to the clean sample; weights make the losses equal where theory says so."""

import pytest
import torch

from diffusion.objectives import GaussianObjective
from diffusion.paths import GaussianPath

PREDICTIONS = ["epsilon", "v_prediction", "sample"]


@pytest.fixture
def path():
    return GaussianPath().double()


def draw(timestep):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, len(timestep), 2, 3, 3, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_true_prediction_gives_back_the_clean_sample(path, prediction):
    timestep = torch.tensor([0, 10, 500, 999])
    clean, noise = draw(timestep)
    objective = GaussianObjective(path, prediction=prediction)
    noisy = path.corrupt(clean, noise, timestep)
    restored = objective.to_clean(objective.target(clean, noise, timestep), noisy, timestep)
    torch.testing.assert_close(restored, clean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("weighting", ["snr", "min_snr"])
def test_weighted_losses_agree_across_predictions(path, weighting):
    """One wrong clean estimate, written as three predictions, costs the same: only the parametrisation differs."""
    timestep = torch.tensor([3, 200, 500, 900])
    clean, noise = draw(timestep)
    noisy, wrong = path.corrupt(clean, noise, timestep), clean + 0.1 * noise
    alpha, sigma = (v.view(-1, 1, 1, 1) for v in path.alpha_sigma(timestep))
    wrong_noise = (noisy - alpha * wrong) / sigma
    stated = {"sample": wrong, "epsilon": wrong_noise, "v_prediction": alpha * wrong_noise - sigma * wrong}
    losses = [
        GaussianObjective(path, prediction=name, weighting=weighting).loss(pred, clean, noise, timestep)
        for name, pred in stated.items()
    ]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=0)
    torch.testing.assert_close(losses[0], losses[2], rtol=1e-3, atol=0)


def test_min_snr_weight_of_epsilon_is_the_published_one(path):
    timestep = torch.arange(1000)
    weight = GaussianObjective(path, weighting="min_snr", gamma=5.0).weight(timestep)
    snr = path.snr(timestep)
    torch.testing.assert_close(weight, torch.minimum(snr, torch.tensor(5.0).double()) / snr)
    assert weight.max() <= 1  # the cap lowers the easy steps, never the hard ones


def test_epsilon_without_terminal_signal_is_refused():
    with pytest.raises(ValueError, match="epsilon cannot be learned"):
        GaussianObjective(GaussianPath(zero_terminal_snr=True), prediction="epsilon")


@pytest.mark.parametrize("wrong", [{"prediction": "x0"}, {"weighting": "p2"}])
def test_unknown_names_are_refused(path, wrong):
    with pytest.raises(ValueError, match="expected"):
        GaussianObjective(path, **wrong)
