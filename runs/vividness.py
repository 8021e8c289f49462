"""How much colour a result gets: a number, or what a ranker picks."""

import math

import torch
from torch import nn

from lightning_modules.vividness_ranker import VividnessRanking
from networks.vividness import ClipVividness
from runs.load import load_run

AUTO = "auto"
DEFAULT_RANKER = "vividness_ranker"
_CLIP = "clip:"


def chroma_scale(chroma: str | None, ranker: str | None) -> float | None:
    """The number that chroma= gives, None for auto or where it is not given.

    Raises:
        ValueError: neither a number from 0 nor auto, or a ranker that nothing asks.
    """
    if ranker and chroma != AUTO:
        raise ValueError(f"ranker={ranker} has no effect without chroma=auto; add that, or leave ranker out")
    if chroma in (None, "", AUTO):
        return None
    try:
        scale = float(chroma)
    except ValueError:
        scale = math.nan
    if not 0 <= scale < math.inf:
        raise ValueError(
            f"chroma={chroma} is neither a number from 0 nor auto; 0 is grey, 1 as drawn, auto what the ranker picks"
        )
    return scale


def chosen_by(chroma: str | None, ranker: str | None) -> dict[str, str]:
    """What a report says of chroma=auto; nothing otherwise."""
    return {"chroma_scale": AUTO, "ranker": ranker or DEFAULT_RANKER} if chroma == AUTO else {}


def load_ranker(chroma: str | None, ranker: str | None, device: torch.device) -> nn.Module | None:
    """The network that picks the chroma scale of chroma=auto, else None.

    Args:
        chroma: as the user wrote it.
        ranker: a run of experiment=vividness_ranker (folder, checkpoint, name in pretrained/), clip:FOLDER_OR_HUB_ID,
            or nothing for the shipped one.
        device: to put it on.

    Raises:
        FileNotFoundError, ValueError: no such ranker.
    """
    if chroma != AUTO:
        return None
    name = ranker or DEFAULT_RANKER
    if name.startswith(_CLIP):
        return ClipVividness.from_folder(name.removeprefix(_CLIP)).to(device)
    try:
        module = load_run(name).module
    except FileNotFoundError as error:
        raise FileNotFoundError(str(error).replace(f"run={name}", f"ranker={name}")) from error
    if not isinstance(module, VividnessRanking):
        raise ValueError(
            f"ranker={name} is a run of {type(module).__name__}; give a run of experiment=vividness_ranker, or "
            "clip:FOLDER_OR_HUB_ID"
        )
    return module.ranker.to(device).eval()
