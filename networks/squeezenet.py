"""SqueezeNet 1.1 (Iandola et al. 2016) as a frozen feature extractor, from weights in Caffe's convention."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import squeezenet1_1

# The indices of torchvision's `features` after which a map is taken: before each pooling, and the last.
_TAPS = (1, 4, 7, 12)
_CAFFE_MEAN_BGR = (104.0, 117.0, 123.0)


class SqueezeNetFeatures(nn.Module):
    """Feature maps of an image in [0, 1] at four depths, 64, 128, 256 and 512 channels.

    The input is turned into Caffe's BGR 0..255 minus the mean, as the Caffe weights expect. A distance made of these maps
    is neither LPIPS nor FID, which belong to other weights: name it after the backbone.

    Example:
        >>> [tuple(m.shape[1:]) for m in SqueezeNetFeatures()(torch.rand(1, 3, 64, 64))]
        [(64, 31, 31), (128, 15, 15), (256, 7, 7), (512, 3, 3)]
    """

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = squeezenet1_1(weights=None).features.eval().requires_grad_(False)
        for layer in self.features.modules():
            # In-place activations would overwrite the taps.
            if isinstance(layer, nn.ReLU):
                layer.inplace = False
        self.register_buffer("mean", torch.tensor(_CAFFE_MEAN_BGR).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def from_file(cls, path: str | Path) -> "SqueezeNetFeatures":
        """Loads a state dict of torchvision's `squeezenet1_1`; ValueError for other weights, or more than tensors."""
        net, prefix = cls(), "features."
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            wanted = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            net.features.load_state_dict(wanted)
        except FileNotFoundError:
            raise
        except Exception as error:  # torch.load raises many kinds: UnpicklingError, RuntimeError, EOFError
            raise ValueError(
                f"{path} cannot be read: it is damaged or holds more than tensors, or weights of another network; "
                "give a squeezenet1_1 state dict"
            ) from error
        return net

    def forward(self, image: Tensor) -> list[Tensor]:
        """Four feature maps of image (B, 3, H, W) in [0, 1]; H and W at least 17."""
        x = image.flip(1) * 255.0 - self.mean
        maps = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in _TAPS:
                maps.append(x)
        return maps
