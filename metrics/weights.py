"""Finding the pretrained weights that metrics need, on this machine only: nothing here downloads or runs code."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal

import torch

LpipsNet = Literal["alex", "vgg", "squeeze"]

# File names as torch.hub stores them for torchvision's and torch-fidelity's downloads.
_LPIPS_FILES: dict[str, str] = {
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}
_INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"


class MissingWeightsError(FileNotFoundError):
    """A metric's weights are not on this machine; the message is one sentence with the remedy."""


@contextmanager
def tensors_alone(path: Path) -> Iterator[None]:
    """Inside, torch.load reads tensors alone: torchvision and torch-fidelity ask it to run what a file says.

    Raises:
        MissingWeightsError: if the file, which is about to be loaded, holds more.
    """
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ[names[0]] = "1"
    try:
        yield
    except UnpicklingError as error:
        raise MissingWeightsError(
            f"{path} is damaged or holds more than tensors, which is not loaded: replace it by the original file"
        ) from error
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def inception_weights() -> Path:
    """Returns the path of FID's Inception weights.

    Raises:
        MissingWeightsError: if torch.hub's cache does not hold them.
    """
    return _cached(
        _INCEPTION_FILE,
        "FID's Inception weights",
        "on a machine with network run python -c 'from torchmetrics.image.fid import FrechetInceptionDistance as F; "
        "F()' and copy the file there",
    )


def lpips_backbone(net: LpipsNet) -> Path:
    """Returns the path of an LPIPS backbone (torchvision's ImageNet weights).

    Raises:
        MissingWeightsError: if torch.hub's cache does not hold them.
        ValueError: if the name is unknown.
    """
    if net not in _LPIPS_FILES:
        raise ValueError(f"LPIPS got net={net!r}, expected one of {', '.join(_LPIPS_FILES)}")
    return _cached(
        _LPIPS_FILES[net],
        f"the {net} backbone of LPIPS",
        "on a machine with network run python -c 'from torchmetrics.image import "
        f'LearnedPerceptualImagePatchSimilarity as L; L("{net}")\' and copy the file there',
    )


def squeezenet_weights(weights_dir: str | Path | None) -> Path:
    """Returns the SqueezeNet 1.1 (Caffe) state dict in a folder or its subfolders.

    Raises:
        MissingWeightsError: if no folder is given or no file squeezenet1_1*.pth is inside.
    """
    if weights_dir is None:
        raise MissingWeightsError(
            "no folder of SqueezeNet weights was given: set weights_dir to one that holds squeezenet1_1*.pth"
        )
    found = sorted(Path(weights_dir).rglob("squeezenet1_1*.pth"))
    if not found:
        raise MissingWeightsError(
            f"{weights_dir} holds no squeezenet1_1*.pth: set weights_dir to the folder with the SqueezeNet weights"
        )
    return found[0]


def _cached(file_name: str, what: str, remedy: str) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / file_name
    if not path.is_file():
        raise MissingWeightsError(f"{what} ({file_name}) are not in {path.parent}: {remedy}")
    return path
