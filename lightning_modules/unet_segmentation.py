"""Segmentation in one pass: the supervised reference that methods of diffusion are judged against."""

from typing import Any

import torch
from torch import Tensor

from lightning_modules.base import Batch, Results, TranslationModule
from lightning_modules.segmenter import (
    NO_VOID,
    WindowOptions,
    by_windows,
    segmentation_loss,
    segmentation_results,
    standardized,
)
from tasks.segmentation import Segmentation


class UnetSegmentation(TranslationModule):
    """Learns the class of each pixel by cross-entropy and soft Dice, as nnU-Net does (Isensee et al. 2021).

    Args:
        network: image (B, C, H, W) -> logits (B, K, H, W), with `grid_px` that sides must be multiples of.
        num_classes: K, with the background.
        ignore_index: id of void pixels, which count nowhere; None = there are none.
        dice_weight: of the Dice term beside the cross-entropy.
        shared: as TranslationModule.
    """

    Options = WindowOptions
    task = Segmentation

    def __init__(
        self,
        *,
        network: Any,
        num_classes: int = 2,
        ignore_index: int | None = None,
        dice_weight: float = 1.0,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.network, self.num_classes, self.dice_weight = network, num_classes, dice_weight
        self.ignore_index = NO_VOID if ignore_index is None else ignore_index
        self.train_only(network)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        logits = self.network(standardized(batch["image"])).float()
        cross_entropy, dice = segmentation_loss(logits, batch["mask"], self.ignore_index)
        return {"cross_entropy": cross_entropy, "dice": self.dice_weight * dice}

    @torch.no_grad()
    def results(self, batch: Batch, options: WindowOptions) -> Results:
        image = self.images(batch)
        window = options.window or self.working_px or max(image.shape[-2:])
        probability = by_windows(
            lambda parts, _: self.network(parts).float().softmax(1)[None],
            standardized(image),
            window=window,
            overlap=options.overlap,
            grid_px=self.network.grid_px,
        )
        return segmentation_results(probability, image)

    def protocol(self, options: WindowOptions) -> dict[str, Any]:
        return {"num_classes": self.num_classes}

    def exported(self) -> dict[str, Any]:
        return {"network": self.network}
