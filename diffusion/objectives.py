"""What the network predicts, and how the prediction is compared and inverted."""

import logging
from typing import Literal

import torch
from torch import Tensor

from diffusion.choices import check_literal
from diffusion.paths import GaussianPath, broadcast

log = logging.getLogger(__name__)

Prediction = Literal["epsilon", "v_prediction", "sample"]
Weighting = Literal["uniform", "snr", "min_snr"]


class GaussianObjective:
    """The regression target on a Gaussian path, its inverse, and the weight of each timestep.

    epsilon (Ho et al. 2020), v = alpha eps - sigma x_0 (Salimans and Ho 2022, Sec. 4), or the clean sample.
    Weights multiply the squared error of the chosen prediction: `uniform` 1; `snr` makes every prediction
    the epsilon loss; `min_snr` caps that at gamma (Hang et al. 2023, Eq. 7 and its epsilon and v forms).

    Args:
        path: the Gaussian path.
        prediction: what the network outputs, in diffusers' words.
        weighting: weight over timesteps.
        gamma: the cap of `min_snr`.

    Raises:
        ValueError: an unknown name; epsilon on a path whose last step holds no signal.

    Example:
        >>> objective = GaussianObjective(GaussianPath(num_timesteps=10), prediction="v_prediction")
        >>> clean, noise, t = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), torch.tensor([4])
        >>> noisy = objective.path.corrupt(clean, noise, t)
        >>> torch.allclose(objective.to_clean(objective.target(clean, noise, t), noisy, t), clean)
        True
    """

    def __init__(
        self,
        path: GaussianPath,
        *,
        prediction: Prediction = "epsilon",
        weighting: Weighting = "uniform",
        gamma: float = 5.0,
    ) -> None:
        check_literal("objective.prediction", prediction, Prediction)
        check_literal("objective.weighting", weighting, Weighting)
        if prediction == "epsilon" and path.zero_terminal_snr:
            raise ValueError(
                "objective.prediction=epsilon cannot be learned with path.zero_terminal_snr=true: the last step holds "
                "no signal; set module.objective.prediction=v_prediction or module.path.zero_terminal_snr=false"
            )
        if weighting != "uniform" and path.zero_terminal_snr:
            log.warning(
                "weighting=%s gives the last steps of a zero-terminal-SNR path almost no weight, and they set the global "
                "colour; module.weighting=uniform trains them",
                weighting,
            )
        self.path, self.prediction, self.weighting, self.gamma = path, prediction, weighting, gamma

    def target(
        self, clean: Tensor, noise: Tensor | None, timestep: Tensor, source: Tensor | None = None
    ) -> Tensor:
        """The tensor (B, C, h, w) that the network should output."""
        assert noise is not None
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "sample":
            return clean
        alpha, sigma = self.path.alpha_sigma(timestep)
        return broadcast(alpha, clean) * noise - broadcast(sigma, clean) * clean

    def to_clean(self, pred: Tensor, x_t: Tensor, timestep: Tensor, source: Tensor | None = None) -> Tensor:
        """The clean estimate (B, C, h, w) that a prediction stands for."""
        if self.prediction == "sample":
            return pred
        alpha, sigma = (broadcast(value, x_t) for value in self.path.alpha_sigma(timestep))
        if self.prediction == "epsilon":
            return (x_t - sigma * pred) / alpha
        return alpha * x_t - sigma * pred

    def weight(self, timestep: Tensor) -> Tensor:
        """Weight of each timestep, float32 (B,)."""
        snr = self.path.snr(timestep)
        if self.weighting == "uniform":
            return torch.ones_like(snr)
        capped = snr if self.weighting == "snr" else snr.clamp(max=self.gamma)
        if self.prediction == "epsilon":
            return capped / snr
        return capped if self.prediction == "sample" else capped / (snr + 1)

    def loss(
        self,
        pred: Tensor,
        clean: Tensor,
        noise: Tensor | None,
        timestep: Tensor,
        source: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Weighted squared error of each sample, float32 (B,), over the cells where `valid` (B, 1, h, w) is 1; None = all."""
        error = (pred.float() - self.target(clean, noise, timestep)).square()
        return self.weight(timestep) * mean_of_each(error, valid)


def mean_of_each(error: Tensor, valid: Tensor | None) -> Tensor:
    """The mean (B,) of each sample of errors (B, C, h, w), over cells where `valid` (B, 1, h, w) is 1; 0 where none is."""
    if valid is None:
        return error.flatten(1).mean(1)
    return (error * valid).flatten(1).sum(1) / valid.expand_as(error).flatten(1).sum(1).clamp_min(1)
