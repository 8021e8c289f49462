"""Frechet distances between the features of two sets of pictures."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.utilities.imports import _TORCH_FIDELITY_AVAILABLE

from metrics.per_image import Summary, check_pair, to_8_bit
from metrics.weights import MissingWeightsError, inception_weights, squeezenet_weights, tensors_alone
from networks.squeezenet import SqueezeNetFeatures

FrechetBackbone = Literal["inception", "squeezenet"]


class FrechetDistance(FrechetInceptionDistance):
    """Frechet distance of Gaussians fitted to features of predictions and of the true pictures.

    With "inception" it is FID (Heusel et al. 2017; the 2048 features of the TensorFlow Inception through
    torch-fidelity); with "squeezenet" it is another number, reported as frechet_squeezenet and never as FID.
    Covariances of fewer pictures than features (2048, or 512) are singular: such values are biased upwards and
    compare only at equal counts.

    Args:
        backbone: "inception" or "squeezenet".
        weights_dir: folder with SqueezeNet 1.1 weights, for "squeezenet".

    Raises:
        MissingWeightsError: if weights, or torch-fidelity for "inception", are missing; nothing is downloaded.
        ValueError: if the backbone is unknown.
    """

    higher_is_better = False

    def __init__(
        self, backbone: FrechetBackbone = "inception", *, weights_dir: str | Path | None = None
    ) -> None:
        if backbone == "inception":
            if not _TORCH_FIDELITY_AVAILABLE:
                raise MissingWeightsError("FID needs the package torch-fidelity: install the extra [metrics]")
            weights = inception_weights()
            with tensors_alone(weights):
                super().__init__(feature=2048, feature_extractor_weights_path=str(weights))
        elif backbone == "squeezenet":
            super().__init__(feature=_PooledSqueezeNet(squeezenet_weights(weights_dir)))
        else:
            raise ValueError(f"FrechetDistance got backbone={backbone!r}, expected inception or squeezenet")
        self.backbone = backbone

    @property
    def report_name(self) -> str:
        """The name this number may be published under."""
        return "fid" if self.backbone == "inception" else "frechet_squeezenet"

    @torch.no_grad()
    def update(self, pred: Tensor, target: Tensor) -> None:
        """Adds a batch of predictions and one of true pictures, (B, 3, H, W) in [0, 1], taken as 8-bit."""
        check_pair(pred, target)
        super().update(to_8_bit(target).to(torch.uint8), real=True)
        super().update(to_8_bit(pred).to(torch.uint8), real=False)

    def compute(self) -> Summary:
        """The distance and the number of predictions.

        Raises:
            ValueError: if fewer than two pictures were seen.
        """
        count = int(self.fake_features_num_samples)
        if count < 2:
            raise ValueError(
                f"a Frechet distance got {count} pictures, expected at least 2; evaluate more of them"
            )
        return Summary(float(super().compute()), None, count)


class _PooledSqueezeNet(nn.Module):
    """The last feature map of SqueezeNet, averaged over the picture: (B, 512) from uint8 (B, 3, H, W)."""

    num_features = 512

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.net = SqueezeNetFeatures.from_file(path)

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image.float() / 255.0)[-1].mean(dim=(2, 3))
