"""Perceptual distances of picture pairs from the features of pretrained networks."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torchmetrics.image import LearnedPerceptualImagePatchSimilarity

from metrics.per_image import PerImageMetric, to_8_bit
from metrics.weights import LpipsNet, lpips_backbone, squeezenet_weights, tensors_alone
from networks.squeezenet import SqueezeNetFeatures


class Lpips(PerImageMetric):
    """LPIPS (Zhang et al. 2018, version 0.1) on 8-bit pictures through torchmetrics, one value per image.

    Args:
        net: backbone, "alex" (the authors' choice for comparing methods), "vgg" or "squeeze".

    Raises:
        MissingWeightsError: if the backbone is not in torch.hub's cache; nothing is downloaded.
    """

    higher_is_better = False

    def __init__(self, net: LpipsNet = "alex") -> None:
        super().__init__()
        with tensors_alone(lpips_backbone(net)):
            self.net = LearnedPerceptualImagePatchSimilarity(net_type=net).net

    def per_image(self, pred: Tensor, target: Tensor) -> Tensor:
        """LPIPS of each pair, (B,)."""
        return self.net(to_8_bit(pred) / 255.0, to_8_bit(target) / 255.0, normalize=True).reshape(len(pred))


class SqueezeNetDistance(PerImageMetric):
    """Mean squared distance of unit-length SqueezeNet features, averaged over positions and summed over depths.

    LPIPS without its learned weights, on the Caffe SqueezeNet: to be reported as feature_distance_squeezenet, and
    comparable only with itself.

    Args:
        weights_dir: folder with SqueezeNet 1.1 weights.

    Raises:
        MissingWeightsError: if the folder is None or holds none.
    """

    higher_is_better = False

    def __init__(self, weights_dir: str | Path | None) -> None:
        super().__init__()
        self.net = SqueezeNetFeatures.from_file(squeezenet_weights(weights_dir))

    def per_image(self, pred: Tensor, target: Tensor) -> Tensor:
        """Distance of each pair, (B,)."""
        maps = zip(self.net(to_8_bit(pred) / 255.0), self.net(to_8_bit(target) / 255.0), strict=True)
        squares = [(normalize(a, dim=1) - normalize(b, dim=1)).square().sum(dim=1) for a, b in maps]
        return torch.stack([square.mean(dim=(1, 2)) for square in squares]).sum(dim=0)
