"""SegDiff: segmentation by diffusion of the mask (Amit et al. 2021, arXiv 2112.00390)."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from einops import rearrange
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.nn import functional as F

from diffusion.codecs import Codec, IdentityCodec, LatentCodec
from diffusion.mask_codec import MaskCodec
from diffusion.objectives import GaussianObjective, Prediction
from diffusion.paths import GaussianPath
from lightning_modules.base import Batch, Results
from lightning_modules.diffusion import DiffusionModule
from lightning_modules.segmenter import (
    EnsembleOptions,
    Segmenter,
    one_hot,
    segmentation_results,
    standardized,
)
from lightning_modules.windows import Place, at_once, by_windows

# Noise of one sample in further windows is keyed this far apart.
_WINDOW_STRIDE = 1 << 12


class SegDiff(Segmenter, DiffusionModule):
    """Draws masks under an image; their mean is the probability of the classes, their disagreement the uncertainty.

    Args:
        network: has `encode(image) -> features`, computed once per image, and (x_t, timestep, features) -> prediction.
        autoencoder: diffuse the masks in the latents of this diffusers autoencoder (SDSeg); None = in pixels.
        path: of noise.
        prediction: what the network predicts.
        shared: as Segmenter and DiffusionModule; two classes are one channel, more are a channel each.

    Raises:
        ValueError: a network of other channels, or of other cells than the autoencoder's.
    """

    Options = EnsembleOptions

    def __init__(
        self,
        *,
        network: Any,
        num_classes: int = 2,
        autoencoder: Any = None,
        path: GaussianPath,
        prediction: Prediction = "epsilon",
        **shared: Any,
    ) -> None:
        channels = 1 if num_classes == 2 else num_classes
        codec: Codec = IdentityCodec(channels)
        if autoencoder is not None:
            codec = MaskCodec(LatentCodec(autoencoder), channels)
        objective = GaussianObjective(path, prediction=prediction)
        super().__init__(num_classes=num_classes, codec=codec, path=path, objective=objective, **shared)
        config = network.config
        self.check_channels("mask_channels", config.mask_channels, codec.num_channels)
        if (cell_px := config.patch_px * codec.downscale) != network.image_px:
            raise ValueError(
                f"the network sees the image in patches of {network.image_px} pixels and the mask in cells of {cell_px}, "
                "which it cannot sum; set module.network.image_patch_px to the latter where the network has it"
            )
        self.network, self.num_channels = network, channels
        self.train_only(network)

    def clean(self, batch: Batch) -> Tensor:
        return self.codec.encode(one_hot(batch["mask"], self.num_classes)[:, -self.num_channels :])

    def valid(self, batch: Batch) -> Tensor | None:
        if self.void is None:
            return None
        void = (batch["mask"] == self.void)[:, None].float()
        return 1 - F.max_pool2d(void, self.codec.downscale)

    def cell_px(self) -> int:
        return math.lcm(self.codec.downscale, self.network.grid_px)

    def encodings(self) -> dict[str, Any]:
        return {}  # of images, and these are of masks

    def condition(self, batch: Batch) -> Any:
        return self.network.encode(standardized(self.images(batch)))

    def denoise(self, x_t: Tensor, timestep: Tensor, condition: Any) -> Tensor:
        return self.network(x_t, timestep, condition)

    @torch.no_grad()
    def results(self, batch: Batch, options: EnsembleOptions) -> Results:
        image = self.images(batch)
        batch = batch | {"index": batch["index"].cpu()}  # once: each look at a GPU would wait for it

        def numbers_of(sample: int, window: int) -> list[int]:
            return self.sample_numbers(batch, sample + window * _WINDOW_STRIDE)

        def samples(parts: Tensor, places: list[Place]) -> Tensor:
            features = self.network.encode(parts)  # once, however many steps and samples follow
            size_px, drawn = (parts.shape[-2], parts.shape[-1]), []
            count = max(1, at_once(size_px) // len(parts))
            for first in range(0, options.num_samples, count):
                some = range(first, min(first + count, options.num_samples))
                repeated = apply_to_collection(features, Tensor, _repeated, len(some))
                numbers = [numbers_of(sample, window)[row] for sample in some for row, window in places]
                drawn.append(self._drawn(repeated, size_px, numbers, options))
            return rearrange(torch.cat(drawn), "(s n) k h w -> s n k h w", n=len(parts))

        drawn = by_windows(
            samples,
            standardized(image),
            window=options.window or self.working_px or max(image.shape[-2:]),
            overlap=options.overlap,
            grid_px=self.cell_px(),
        )
        return segmentation_results(drawn, image, options.fusion)

    @torch.no_grad()
    def rows(self, batch: Batch, options: EnsembleOptions) -> Iterator[tuple[str, Results]]:
        yield from super().rows(batch, options)
        if isinstance(self.codec, MaskCodec):
            mask = batch["mask"].to(self.device)
            missing = [-length % self.codec.downscale for length in mask.shape[-2:]]
            padded = F.pad(mask[:, None].float(), (0, missing[1], 0, missing[0]), mode="replicate")[:, 0]
            known = self._probability(self.codec.to_picture(self.clean({"mask": padded.long()})))
            known = known[..., : mask.shape[-2], : mask.shape[-1]]
            yield "autoencoder's ceiling", segmentation_results(known[None], self.images(batch))

    def _drawn(
        self, features: Any, size_px: tuple[int, int], numbers: list[int], options: EnsembleOptions
    ) -> Tensor:
        """Class probabilities (B, K, H, W), one for each of the B features and numbers."""

        def denoise(x_t: Tensor, timestep: Tensor) -> Tensor:
            return self.denoise(x_t, timestep, features)

        return self._probability(
            self.codec.to_picture(self.draw_from_noise(denoise, size_px, numbers, options))
        )

    def _probability(self, shares: Tensor) -> Tensor:
        """(B, K, H, W) of the diffused channels."""
        return torch.cat([1 - shares, shares], dim=1) if self.num_classes == 2 else shares

    def exported(self) -> dict[str, Any]:
        return {"network": self.network}


def _repeated(tensor: Tensor, times: int) -> Tensor:
    return torch.cat([tensor] * times)
