"""What the network predicts on a bridge, and how the prediction is compared and inverted."""

from typing import Literal

import torch
from torch import Tensor

from diffusion.bridge_paths import BridgePath
from diffusion.choices import check_literal
from diffusion.objectives import mean_of_each

BridgePrediction = Literal["delta", "difference", "sample", "grad"]
BridgeWeighting = Literal["uniform", "i2sb"]
Norm = Literal["l1", "l2"]


class BridgeObjective:
    """The regression target on a bridge, its inverse, and the weight of each timestep.

    | prediction | target | on a path without noise |
    |---|---|---|
    | delta | x_0 - x_t, what is still missing | m (x_0 - y) |
    | difference | y - x_0, the velocity dx/dm of the mixture | y - x_0 |
    | sample | x_0 | x_0 |
    | grad | x_t - x_0 = m (y - x_0) + s eps, BBDM's (Li et al. 2023); equals -delta | m (y - x_0) |

    Each inverts to x_0 with the factor 1 or -1, so the same error in x_0 costs the same under all four; they differ in
    what the network's output looks like and in what an untrained network, whose output is near 0, stands for:
    x_t (delta, grad), y (difference), or nothing.

    Weighting `i2sb` compares targets divided by sqrt(m_t), as I2SB does up to a constant (Liu et al. 2023, Eq. 12, by its
    code): squared errors weigh 1 / m_t, absolute ones 1 / sqrt(m_t).

    Args:
        path: the bridge.
        prediction: what the network outputs.
        weighting: uniform or i2sb.
        norm: l2, the mean squared error, or l1, the mean absolute error.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> objective = BridgeObjective(BridgePath(num_timesteps=10), prediction="delta")
        >>> clean, source, t = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2), torch.tensor([4])
        >>> x_t = objective.path.corrupt(clean, None, t, source)
        >>> torch.allclose(objective.to_clean(objective.target(clean, None, t, source), x_t, t, source), clean)
        True
    """

    def __init__(
        self,
        path: BridgePath,
        *,
        prediction: BridgePrediction = "delta",
        weighting: BridgeWeighting = "uniform",
        norm: Norm = "l2",
    ) -> None:
        check_literal("objective.prediction", prediction, BridgePrediction)
        check_literal("objective.weighting", weighting, BridgeWeighting)
        check_literal("objective.norm", norm, Norm)
        self.path, self.prediction, self.weighting, self.norm = path, prediction, weighting, norm

    def target(
        self, clean: Tensor, noise: Tensor | None, timestep: Tensor, source: Tensor | None = None
    ) -> Tensor:
        """The tensor (B, C, h, w) that the network should output; noise may be None on a path without noise."""
        assert source is not None
        if self.prediction == "sample":
            return clean
        if self.prediction == "difference":
            return source - clean
        grad = self.path.corrupt(clean, noise, timestep, source) - clean
        return grad if self.prediction == "grad" else -grad

    def to_clean(self, pred: Tensor, x_t: Tensor, timestep: Tensor, source: Tensor | None = None) -> Tensor:
        """The clean estimate (B, C, h, w) that a prediction stands for."""
        if self.prediction == "sample":
            return pred
        if self.prediction == "difference":
            assert source is not None
            return source - pred
        return x_t - pred if self.prediction == "grad" else x_t + pred

    def weight(self, timestep: Tensor) -> Tensor:
        """Weight of each timestep, float32 (B,)."""
        m, _ = self.path.m_s(timestep)
        if self.weighting == "uniform":
            return torch.ones_like(m)
        return 1 / m if self.norm == "l2" else 1 / m.sqrt()

    def loss(
        self,
        pred: Tensor,
        clean: Tensor,
        noise: Tensor | None,
        timestep: Tensor,
        source: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Weighted squared or absolute error of each sample, float32 (B,), over cells where `valid` (B, 1, h, w) is 1."""
        error = pred.float() - self.target(clean, noise, timestep, source)
        error = error.square() if self.norm == "l2" else error.abs()
        return self.weight(timestep) * mean_of_each(error, valid)
