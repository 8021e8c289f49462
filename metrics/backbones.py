"""Frozen networks that turn pictures into one vector each, named after their weights; nothing here downloads."""

from functools import lru_cache
from pathlib import Path

from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchmetrics.image.fid import NoTrainInceptionV3
from torchmetrics.utilities.imports import _TORCH_FIDELITY_AVAILABLE
from torchvision.transforms.functional import normalize

from metrics.weights import MissingWeightsError, check_tensors_alone, inception_weights, weights_in
from networks.squeezenet import SqueezeNetFeatures


def feature_network(backbone: str, weights_dir: str | Path | None = None) -> nn.Module:
    """Returns a frozen network uint8 (B, 3, H, W) -> (B, D) with the attribute num_features = D.

    The same weights give the same network again, so that the rows of a table share it: move it to the pictures' device
    before each use.

    Args:
        backbone: "inception" (the TensorFlow Inception of FID, 2048 features, through torch-fidelity), "squeezenet"
            (Caffe SqueezeNet 1.1, 512 features) or the name of a timm model such as "resnet18.a1_in1k".
        weights_dir: folder with the weights of "squeezenet" or of the timm model.

    Raises:
        MissingWeightsError: if weights, or torch-fidelity for "inception", are missing.
        ValueError: if the backbone is unknown, or the file holds other weights.
    """
    if backbone == "inception":
        if not _TORCH_FIDELITY_AVAILABLE:
            raise MissingWeightsError("FID needs the package torch-fidelity: install the extra [metrics]")
        return _inception(inception_weights())
    if backbone == "squeezenet":
        return _PooledSqueezeNet(squeezenet(weights_dir))
    import timm  # takes a second, and few evaluations need it

    if not timm.is_model(backbone.partition(".")[0]):
        raise ValueError(
            f"a Frechet or kernel distance got backbone={backbone!r}, expected inception, squeezenet or the name of a "
            "timm model such as resnet18.a1_in1k"
        )
    files = f"{backbone}.safetensors", f"{backbone}/model.safetensors"
    return _timm_features(backbone, weights_in(weights_dir, "the weights of this timm model", *files))


def squeezenet(weights_dir: str | Path | None) -> SqueezeNetFeatures:
    """The SqueezeNet 1.1 (Caffe) in squeezenet1_1*.pth below a folder; the same file gives the same network again."""
    return _squeezenet(weights_in(weights_dir, "the SqueezeNet weights", "squeezenet1_1*.pth"))


_squeezenet = lru_cache(maxsize=1)(SqueezeNetFeatures.from_file)


@lru_cache(maxsize=1)
def _inception(weights: Path) -> nn.Module:
    check_tensors_alone(weights)
    net = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(weights))
    net.num_features = 2048  # read by torchmetrics
    return net.eval().requires_grad_(False)


class _PooledSqueezeNet(nn.Module):
    """The last feature map of SqueezeNet, averaged over the picture: (B, 512) from uint8 (B, 3, H, W)."""

    num_features = 512

    def __init__(self, net: SqueezeNetFeatures) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image.float() / 255.0)[-1].mean(dim=(2, 3))


class _TimmFeatures(nn.Module):
    """Pooled features (B, D) of a timm model, of pictures resized to the size that its weights were trained at."""

    def __init__(self, name: str, weights: Path) -> None:
        super().__init__()
        import timm

        try:
            self.net = timm.create_model(
                name, pretrained=True, num_classes=0, pretrained_cfg_overlay={"file": str(weights)}
            )
        except RuntimeError as error:
            raise ValueError(
                f"{weights} does not hold the weights of {name}: {str(error).splitlines()[0]}"
            ) from error
        config = timm.data.resolve_model_data_config(self.net)
        self.num_features = int(self.net.num_features)  # type: ignore[arg-type]
        self.size_px: tuple[int, int] = config["input_size"][1:]
        self.mean, self.std = config["mean"], config["std"]

    def forward(self, image: Tensor) -> Tensor:
        resized = interpolate(image.float() / 255.0, size=self.size_px, mode="bicubic", antialias=True)
        return self.net(normalize(resized.clamp(0.0, 1.0), self.mean, self.std))


@lru_cache(maxsize=1)
def _timm_features(name: str, weights: Path) -> nn.Module:
    return _TimmFeatures(name, weights).eval().requires_grad_(False)
