"""Perceptual distances of picture pairs from the features of pretrained networks."""

import copy
import re
from functools import lru_cache
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn
from torchmetrics.functional.image.lpips import _LPIPS
from torchmetrics.image import LearnedPerceptualImagePatchSimilarity

from metrics.backbones import squeezenet
from metrics.per_image import PerImageMetric, PicturePairMetric, to_8_bit
from metrics.weights import LpipsNet, check_tensors_alone, find_weights, lpips_backbone
from networks.perceptual import FeatureDistance


class LpipsMetric(PerImageMetric):
    """Base of metrics by LPIPS (Zhang et al. 2018, version 0.1) on 8-bit pictures, by torchmetrics.

    Args:
        net: backbone, "alex" (the authors' choice for comparing methods), "vgg" or "squeeze".
        weights_dir: folder that may hold lpips_NET_v0.1.safetensors (the backbone's features and the heads); without
            such a file the backbone is taken from torch.hub's cache.

    Raises:
        MissingWeightsError: if neither place has the backbone; nothing is downloaded.
        ValueError: if the file holds other weights.
    """

    def __init__(self, net: LpipsNet = "alex", *, weights_dir: str | Path | None = None) -> None:
        super().__init__()
        file = find_weights(weights_dir, f"lpips_{net}_v0.1.safetensors")
        self.net = _from_hub(net, lpips_backbone(net)) if file is None else _from_file(net, file)

    def per_image(self, pred: Tensor, target: Tensor) -> Tensor:
        """LPIPS of each pair, (B,)."""
        net = self.net.to(pred.device)  # other rows share it, maybe on another device
        return net(to_8_bit(pred) / 255.0, to_8_bit(target) / 255.0, normalize=True).reshape(len(pred))


class Lpips(LpipsMetric, PicturePairMetric):
    """LPIPS of each result and its truth; arguments as `LpipsMetric`."""


@lru_cache(maxsize=1)
def _from_hub(net: LpipsNet, backbone: Path) -> nn.Module:
    check_tensors_alone(backbone)
    return LearnedPerceptualImagePatchSimilarity(net_type=net).net


@lru_cache(maxsize=1)
def _from_file(net: LpipsNet, file: Path) -> nn.Module:
    # No public class of torchmetrics builds the network without fetching torchvision's whole classifier.
    network = _LPIPS(pretrained=False, pnet_rand=True, net=net)
    # features.3.weight is net.slice2.3.weight or net.slices.1.3.weight there; the heads are listed twice.
    names = {
        re.sub(r"^net\.(slice\d+|slices\.\d+)\.", "features.", name): name
        for name in network.state_dict()
        if re.match(r"net\.|lin\d", name)
    }
    state = load_file(file)
    if state.keys() != names.keys():
        missing, unexpected = sorted(names.keys() - state.keys()), sorted(state.keys() - names.keys())
        raise ValueError(
            f"{file} does not hold LPIPS on {net}: missing {missing[:3]}, unexpected {unexpected[:3]}"
        )
    network.load_state_dict({names[key]: value.float() for key, value in state.items()}, strict=False)
    return network


class SqueezeNetDistance(PicturePairMetric):
    """Mean squared distance of unit-length SqueezeNet features, averaged over positions and summed over depths.

    LPIPS without its learned weights, on the Caffe SqueezeNet, whose weights lie below `weights_dir`, else
    MissingWeightsError. Comparable only with itself.
    """

    def __init__(self, weights_dir: str | Path | None) -> None:
        super().__init__()
        self.distance = FeatureDistance(squeezenet(weights_dir))

    def per_image(self, pred: Tensor, target: Tensor) -> Tensor:
        distance = self.distance.to(pred.device)
        # Four depths, over which the network's distance is the mean.
        return 4.0 * distance(to_8_bit(pred) / 255.0, to_8_bit(target) / 255.0)


class LpipsDistance(nn.Module):
    """LPIPS as a term of a training loss: of images that are not rounded, with gradients to the first.

    Args:
        net, weights_dir: as `LpipsMetric`, and so are the errors.
    """

    def __init__(self, net: LpipsNet = "alex", *, weights_dir: str | None = None) -> None:
        super().__init__()
        self.net = copy.deepcopy(Lpips(net, weights_dir=weights_dir).net).eval().requires_grad_(False)

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        """LPIPS (B,) between image and reference (B, 3, H, W), about in [0, 1]."""
        return self.net(image, reference, normalize=True).reshape(len(image))
