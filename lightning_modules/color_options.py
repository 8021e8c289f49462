"""What users set when they colour photos: how the colours are drawn, how much of them, and what is known already."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import nn

from diffusion.bridge_paths import BridgePath
from diffusion.bridge_samplers import BridgeSampler
from lightning_modules.base import TranslationModule
from lightning_modules.color_edits import check_hints
from lightning_modules.options import PromptOptions, option
from lightning_modules.vividness_ranker import VividnessRanking
from networks.vividness import ClipVividness

AUTO: Literal["auto"] = "auto"
DEFAULT_RANKER = "vividness_ranker"
_CLIP = "clip:"


def chroma(text: str) -> "float | Literal['auto']":
    """The factor of ab that `chroma=` asks for, or "auto".

    Raises:
        ValueError: neither a number from 0 nor auto.
    """
    try:
        scale = math.nan if text == AUTO else float(text)
    except ValueError:
        scale = math.nan
    if text != AUTO and not 0 <= scale < math.inf:
        raise ValueError(
            f"chroma={text} is neither a number from 0 nor auto; 0 is grey, 1 as drawn, auto what the ranker picks"
        )
    return AUTO if text == AUTO else scale


@dataclass(frozen=True, kw_only=True)
class ColorizationOptions(PromptOptions):
    """Of every colorizer.

    Raises:
        ValueError: no working size, or a ranker that nothing asks.
    """

    short_px: int | None = option(
        "working size: short side as the network sees it; the run's own if not given", None
    )
    chroma: float | str | None = option(
        "0 grey, 1 as drawn, auto = what the ranker picks; the run's own if not given", None, parse=chroma
    )
    ranker: str | None = option(
        "for chroma=auto: a run of vividness_ranker, or clip:FOLDER_OR_HUB_ID; vividness_ranker if not given",
        None,
    )
    mask: str | None = option(
        "grey picture of the photo's size: white = colour here, black = keep the photo as it is", None
    )
    # Images (B, 3, H, W) in [0, 1] -> scores (B,); what `with_ranker` loads.
    ranker_network: nn.Module | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.short_px is not None and self.short_px < 1:
            raise ValueError(f"short_px={self.short_px} is no working size; give pixels, or leave it out")
        if self.ranker and self.chroma != AUTO:
            raise ValueError(
                f"ranker={self.ranker} has no effect without chroma=auto; add that, or leave ranker out"
            )


@dataclass(frozen=True, kw_only=True)
class WalkOptions(ColorizationOptions):
    """Of a colorizer that walks from the photo: what it can be given on its way.

    Raises:
        FileNotFoundError, ValueError: hints that are neither a file nor points, or no level to start from.
    """

    hints: str | None = option(
        "known colours: PNG of the photo's size, opaque where known, or points as in 'x,y,#rrggbb; x,y,radius,#rrggbb'",
        None,
    )
    start: float = option(
        "1 from grey; less = the photo has kept 1 - start of its colour, go on from there", 1.0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.start <= 1:
            raise ValueError(
                f"start={self.start:g} is no level; expected above 0 and at most 1: 1 starts from grey, less from the "
                "photo's own colours"
            )
        if self.hints:
            check_hints(self.hints)

    def check_walk(self, path: BridgePath, sampler: BridgeSampler, *, takes_hints: bool) -> None:
        """Raises a ValueError for what a model on this path cannot do or what would do nothing."""
        if self.hints and not takes_hints:
            raise ValueError(
                "hints= needs a model that has learned from hints, and this one was trained with module.hint_prob=0; give a "
                "prompt=, or train with module.hint_prob=0.5"
            )
        if self.start != 1 and path.num_timesteps == 1:
            raise ValueError(
                f"start={self.start:g} needs a walk of many steps, and this model goes from grey to colour in one "
                "(module.path.num_timesteps=1); leave it out"
            )
        # A single step from the source adds no noise: it ends on the clean estimate.
        one_step = (self.steps or sampler.num_steps) == 1 and self.start == 1
        if self.num_samples > 1 and (path.noise_scale == 0 or one_step):
            raise ValueError(
                f"num_samples={self.num_samples} would write the same picture {self.num_samples} times, as a walk without "
                "noise has one result; leave it out (module.path.noise_scale and two steps or more give several)"
            )


def with_ranker(
    options: ColorizationOptions, load: Callable[[str], TranslationModule], device: torch.device
) -> ColorizationOptions:
    """The options with the network that picks the chroma scale of chroma=auto; otherwise as they are.

    Args:
        options: what the user set.
        load: a trained module from a run folder, checkpoint or name in pretrained/.
        device: to put the network on.

    Raises:
        FileNotFoundError, ValueError: no such ranker.
    """
    if options.chroma != AUTO:
        return options
    name = options.ranker or DEFAULT_RANKER
    if name.startswith(_CLIP):
        network: nn.Module = ClipVividness.from_folder(name.removeprefix(_CLIP))
        return replace(options, ranker_network=network.to(device).eval())
    try:
        module = load(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(str(error).replace(f"run={name}", f"ranker={name}")) from error
    if not isinstance(module, VividnessRanking):
        raise ValueError(
            f"ranker={name} is a run of {type(module).__name__}; give a run of experiment=vividness_ranker, or "
            "clip:FOLDER_OR_HUB_ID"
        )
    return replace(options, ranker_network=module.ranker.to(device).eval())
