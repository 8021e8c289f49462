"""Classifier-free guidance (Ho and Salimans 2022) with the rescale of Lin et al. 2023."""

from torch import Tensor


def guide(pred: Tensor, pred_negative: Tensor, *, scale: float, rescale: float = 0.0) -> Tensor:
    """The prediction pushed away from the negative one, (B, C, h, w).

    Args:
        pred: prediction under the condition.
        pred_negative: prediction under the negative (or empty) condition.
        scale: 1 returns `pred`, 0 the negative, above 1 extrapolates.
        rescale: share in [0, 1] by which the result takes the per-sample standard deviation of `pred` back
            (Lin et al. 2023, Eq. 15-16), against over-saturation.
    """
    guided = pred_negative + scale * (pred - pred_negative)
    if rescale == 0.0:
        return guided
    axes = tuple(range(1, pred.ndim))
    matched = guided * (pred.std(axes, keepdim=True) / guided.std(axes, keepdim=True))
    return rescale * matched + (1 - rescale) * guided
