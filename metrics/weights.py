"""Finding the pretrained weights that metrics need, on this machine only: nothing here downloads or runs code."""

from pathlib import Path
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


def check_tensors_alone(path: Path) -> None:
    """Raises MissingWeightsError for a file with more than tensors.

    torchvision and torch-fidelity, which read it next, would run what it says.
    """
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds: UnpicklingError, RuntimeError, EOFError
        raise MissingWeightsError(
            f"{path} is damaged or holds more than tensors, which is not loaded: replace it by the original file"
        ) from error


def inception_weights() -> Path:
    """FID's Inception weights in torch.hub's cache; MissingWeightsError if they are not there."""
    code = "from torchmetrics.image.fid import FrechetInceptionDistance as F; F()"
    return _cached(_INCEPTION_FILE, "FID's Inception weights", code)


def lpips_backbone(net: LpipsNet) -> Path:
    """LPIPS's backbone, torchvision's ImageNet weights, in torch.hub's cache; MissingWeightsError if not there."""
    code = f'from torchmetrics.image import LearnedPerceptualImagePatchSimilarity as L; L("{net}")'
    other = f"; or set weights_dir to a folder with lpips_{net}_v0.1.safetensors"
    return _cached(_LPIPS_FILES[net], f"the {net} backbone of LPIPS", code, other)


def _cached(file_name: str, what: str, code: str, other: str = "") -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / file_name
    if not path.is_file():
        raise MissingWeightsError(
            f"{what} ({file_name}) are not in {path.parent}: on a machine with network run python -c '{code}' and copy "
            f"the file there{other}"
        )
    return path


def find_weights(folder: str | Path | None, *patterns: str) -> Path | None:
    """The first file below a folder that matches a pattern, the patterns in order; None without one."""
    if folder is None:
        return None
    return next((file for pattern in patterns for file in sorted(Path(folder).rglob(pattern))), None)


def weights_in(folder: str | Path | None, what: str, *patterns: str) -> Path:
    """As `find_weights`, but raises MissingWeightsError, which says `what` is missing, instead of returning None."""
    found = find_weights(folder, *patterns)
    if found is None:
        raise MissingWeightsError(
            f"{folder or 'weights_dir=null'} holds no {patterns[0]}: set weights_dir to the folder with {what}"
        )
    return found
