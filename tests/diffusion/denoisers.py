"""Denoisers on a Gaussian path whose answer is known in closed form."""

from torch import Tensor

from diffusion.objectives import GaussianObjective
from diffusion.samplers import Denoise


def prediction_of(objective: GaussianObjective, clean: Tensor, x: Tensor, timestep: Tensor) -> Tensor:
    """The prediction that stands for a clean estimate."""
    alpha, sigma = (v.view(-1, 1, 1, 1) for v in objective.path.alpha_sigma(timestep))
    noise = (x - alpha * clean) / sigma
    return {"sample": clean, "epsilon": noise, "v_prediction": alpha * noise - sigma * clean}[
        objective.prediction
    ]


def gaussian_denoiser(objective: GaussianObjective, mean: float, std: float) -> Denoise:
    """The exact prediction where clean ~ N(mean, std^2): E[x_0 | x_t] is linear in x_t."""

    def denoise(noisy: Tensor, timestep: Tensor) -> Tensor:
        alpha, sigma = (v.view(-1, 1, 1, 1) for v in objective.path.alpha_sigma(timestep))
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        return prediction_of(objective, mean + gain * (noisy - alpha * mean), noisy, timestep)

    return denoise
