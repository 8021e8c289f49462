"""MedSegDiff: SegDiff whose network fuses image and mask, with an anchor beside (Wu et al. 2022 and 2023)."""

from typing import Any

import torch
from torch import Tensor

from lightning_modules.diffusion import Step
from lightning_modules.segdiff import SegDiff
from lightning_modules.segmenter import NO_VOID, segmentation_loss


class MedSegDiff(SegDiff):
    """Draws masks as SegDiff does; where the network has an anchor branch, that learns the mask directly as well.

    Args:
        anchor_weight: of the anchor's loss, Dice and cross-entropy (Wu et al. 2023, Eq. 9).
        anchor_every: the anchor learns from samples whose timestep is a multiple of this, the paper's alpha; 1 = all.
        settings: as SegDiff.

    Raises:
        ValueError: an anchor loss for a network without an anchor.
    """

    def __init__(self, *, anchor_weight: float = 1.0, anchor_every: int = 1, **settings: Any) -> None:
        super().__init__(**settings)
        if anchor_weight and getattr(self.network, "anchor", None) is None:
            raise ValueError(
                f"module.anchor_weight={anchor_weight} trains an anchor that the network lacks; set it to 0, or "
                "module.network.anchor_classes to the number of classes"
            )
        self.anchor_weight, self.anchor_every = anchor_weight, anchor_every

    def further_losses(self, step: Step) -> dict[str, Tensor]:
        if not self.anchor_weight:
            return {}
        logits, mask = step.condition["anchor"].float(), step.batch["mask"]
        learns = (step.timestep % self.anchor_every == 0).float()
        void = NO_VOID if self.ignore_index is None else self.ignore_index
        errors = [segmentation_loss(x[None], m[None], void) for x, m in zip(logits, mask, strict=True)]
        error = torch.stack([cross_entropy + dice for cross_entropy, dice in errors])
        return {"anchor": self.anchor_weight * (error * learns).sum() / learns.sum().clamp_min(1)}
