"""LIIF: upscaling to any size in one pass, learned by L1 (Chen et al. 2021, arXiv 2012.09161).

Shapes: B batch, N side of the training images, L side of the small patches.
"""

from typing import Any

import torch
from torch import Tensor, nn

from diffusion.codecs import Window
from lightning_modules.any_size import AnySize, Strips, cut, random_places
from lightning_modules.base import Batch
from metrics.resolution import resize_bicubic
from networks.liif import LiifNetwork


class Liif(AnySize):
    """Learns random patches of pictures from small ones at random real-valued scales.

    Of each training image a random square of L times the scale is shrunk to L pixels (bicubic, antialiased), and a random
    patch of L x L pixels of the square is compared. So the cost of a step depends on neither the scale nor the image.

    Args:
        network: of pictures, such as networks.liif_upscaler.LiifUpscaler.
        input_px: L.
        max_scale: the scale is uniform from 1 to this, or to N / L.
        shared: as TranslationModule.
    """

    def __init__(
        self, *, network: LiifNetwork, input_px: int = 48, max_scale: float = 4.0, **shared: Any
    ) -> None:
        super().__init__(**shared)
        if input_px < 1 or max_scale < 1:
            raise ValueError(
                f"module.input_px={input_px} and module.max_scale={max_scale:g}; expected at least 1 of each"
            )
        self.network, self.input_px, self.max_scale = network, input_px, max_scale
        self.train_only(network)

    def compiled_networks(self) -> list[nn.Module]:
        return self.network.called()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        image, side, draws = batch["image"], self.input_px, self.draws(batch)
        if min(image.shape[-2:]) < side:
            raise ValueError(
                f"module.input_px={side} is more than datamodule.size_px; set it to at most that"
            )
        most = min(self.max_scale, min(image.shape[-2:]) / side)
        squares = [round(side * (1 + share * (most - 1))) for share in draws.uniform("scale")]
        corners = random_places(draws, "square", [min(image.shape[-2:]) - square for square in squares])
        truth = [
            one[:, top : top + square, left : left + square]
            for one, (top, left), square in zip(image, corners, squares, strict=True)
        ]
        low = torch.cat([resize_bicubic(one[None], (side, side)) for one in truth])
        places = random_places(draws, "patch", [square - side for square in squares])
        windows: list[Window] = [(top, left, side, side) for top, left in places]
        sizes = [(square, square) for square in squares]
        pred = self.network.patches(self.network.prepare(low), sizes, windows)
        return {"l1": (pred.float() - cut(truth, windows)).abs().mean()}

    def strips_of(self, low: Tensor, numbers: list[int], options: Any) -> Strips:
        return Strips.of(self.network, low)

    def exported(self) -> dict[str, Any]:
        return {"network": self.network}
