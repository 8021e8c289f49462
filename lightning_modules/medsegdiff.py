"""MedSegDiff: SegDiff whose network fuses image and mask, with an anchor beside (Wu et al. 2022 and 2023)."""

from typing import Any

import torch
from torch import Tensor

from lightning_modules.diffusion import Step
from lightning_modules.segdiff import SegDiff
from lightning_modules.segmenter import segmentation_loss


class MedSegDiff(SegDiff):
    """Draws masks as SegDiff does; where the network has an anchor branch, that learns the mask directly as well.

    Args:
        anchor_weight: of the anchor's loss, Dice and cross-entropy (Wu et al. 2023, Eq. 9).
        anchor_every: the anchor learns from samples whose timestep is a multiple of this, the paper's alpha; 1 = all.
        settings: as SegDiff.

    Raises:
        ValueError: an anchor without its loss, a loss without an anchor, or an anchor of other classes.
    """

    def __init__(self, *, anchor_weight: float = 1.0, anchor_every: int = 1, **settings: Any) -> None:
        super().__init__(**settings)
        has_anchor = getattr(self.network, "anchor", None) is not None
        if bool(anchor_weight) != has_anchor:
            raise ValueError(
                f"module.anchor_weight={anchor_weight}, but the network has {'an' if has_anchor else 'no'} anchor; give both or "
                "neither: an anchor has module.network.anchor_classes, and a weight above 0 trains it"
            )
        if has_anchor:
            self.check_channels("anchor_classes", self.network.config.anchor_classes, self.num_classes)
        if anchor_every < 1:
            raise ValueError(f"module.anchor_every is {anchor_every}; expected at least 1")
        self.anchor_weight, self.anchor_every = anchor_weight, anchor_every

    def further_losses(self, step: Step) -> dict[str, Tensor]:
        if not self.anchor_weight:
            return {}
        logits, mask = step.condition["anchor"].float(), step.batch["mask"]
        learns = (step.timestep % self.anchor_every == 0).float()
        errors = [
            segmentation_loss(x[None], m[None], self.ignore_index) for x, m in zip(logits, mask, strict=True)
        ]
        error = torch.stack([cross_entropy + dice for cross_entropy, dice in errors])
        return {"anchor": self.anchor_weight * (error * learns).sum() / learns.sum().clamp_min(1)}
