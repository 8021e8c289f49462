"""Segmentation in one pass: the supervised reference that methods of diffusion are judged against."""

from typing import Any

import torch
from torch import Tensor

from lightning_modules.base import Batch, Results
from lightning_modules.segmenter import Segmenter, segmentation_loss, segmentation_results, standardized
from lightning_modules.windows import WindowOptions, by_windows


class UnetSegmentation(Segmenter):
    """Learns the class of each pixel by cross-entropy and soft Dice, nnU-Net's losses (Isensee et al. 2021).

    Args:
        network: image (B, C, H, W) -> logits (B, K, H, W), with `grid_px` that sides must be multiples of.
        dice_weight: of the Dice term beside the cross-entropy.
        shared: as Segmenter.

    Raises:
        ValueError: a network of another number of classes.
    """

    Options = WindowOptions

    def __init__(self, *, network: Any, dice_weight: float = 1.0, **shared: Any) -> None:
        super().__init__(**shared)
        self.check_channels("out_channels", network.config.out_channels, self.num_classes)
        self.network, self.dice_weight = network, dice_weight
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

    def cell_px(self) -> int:
        return self.network.grid_px

    def exported(self) -> dict[str, Any]:
        return {"network": self.network}
