"""Distances between images in the feature space of a frozen network."""

import torch
from torch import Tensor, nn


class FeatureDistance(nn.Module):
    """Mean squared distance of channel-normalised features, averaged over depths: (B,) per image.

    The form of Zhang et al. 2018 (Eq. 1) without learned channel weights, over any backbone that returns a list
    of maps; it is not LPIPS.

    Args:
        backbone: image (B, 3, H, W) in [0, 1] -> list of maps (B, C, h, w); frozen here.

    Example:
        >>> from networks.squeezenet import SqueezeNetFeatures
        >>> a = torch.rand(2, 3, 32, 32)
        >>> FeatureDistance(SqueezeNetFeatures())(a, a).tolist()
        [0.0, 0.0]
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(False)

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        """Distance (B,) between image and reference (B, 3, H, W) in [0, 1]; gradients reach `image` alone."""
        with torch.no_grad():
            reference_maps = self.backbone(reference)
        distance = image.new_zeros(len(image), dtype=torch.float32)
        for ours, theirs in zip(self.backbone(image), reference_maps, strict=True):
            difference = nn.functional.normalize(ours.float()) - nn.functional.normalize(theirs.float())
            distance = distance + difference.square().sum(1).flatten(1).mean(1)
        return distance / len(reference_maps)
