"""chroma=auto: how much of the drawn colours a ranker likes best."""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lightning_modules.base import TranslationModule
from lightning_modules.vividness_ranker import VividnessRanking
from networks.vividness import ClipVividness, best_candidates

log = logging.getLogger(__name__)

CHROMA_SCALES = (0.5, 0.65, 0.8, 1.0, 1.2, 1.4, 1.7, 2.0)
DEFAULT_RANKER = "vividness_ranker"
_CLIP = "clip:"


def load_ranker(name: str | None, load: Callable[[str], TranslationModule]) -> nn.Module:
    """Images (B, 3, H, W) in [0, 1] -> scores (B,): that of a run, `clip:FOLDER_OR_HUB_ID`, or None for the shipped one.

    Raises:
        FileNotFoundError, ValueError: no such ranker.
    """
    name = name or DEFAULT_RANKER
    if name.startswith(_CLIP):
        return ClipVividness.from_folder(name.removeprefix(_CLIP))
    try:
        module = load(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(str(error).replace(f"run={name}", f"ranker={name}")) from error
    if not isinstance(module, VividnessRanking):
        raise ValueError(
            f"ranker={name} is a run of {type(module).__name__}; give a run of experiment=vividness_ranker, or "
            "clip:FOLDER_OR_HUB_ID"
        )
    return module.ranker


def best_chroma(candidates: Tensor, ranker: nn.Module, names: Sequence[str]) -> Tensor:
    """The best of each image's candidates (K, B, 3, H, W) at `CHROMA_SCALES`, logged by the B names: (B, 3, H, W)."""
    best = best_candidates(ranker, candidates)
    chosen = [f"{name} x {CHROMA_SCALES[k]:g}" for name, k in zip(names, best.tolist(), strict=True)]
    log.info("chroma=auto: %s", ", ".join(chosen))
    return candidates[best, torch.arange(len(best), device=best.device)]
