"""What users set when they colour photos."""

import math
from dataclasses import dataclass, field

from torch import nn

from lightning_modules.options import PromptOptions, option, path

AUTO = "auto"


def chroma(text: str) -> float | str:
    """The factor of ab that `chroma=` asks for, or "auto".

    Raises:
        ValueError: neither a number from 0 nor auto.
    """
    try:
        scale = AUTO if text == AUTO else float(text)
    except ValueError:
        scale = math.nan
    if isinstance(scale, float) and not 0 <= scale < math.inf:
        raise ValueError(
            f"chroma={text} is neither a number from 0 nor auto; 0 is grey, 1 as drawn, auto what the ranker picks"
        )
    return scale


@dataclass(frozen=True, kw_only=True)
class ColorizationOptions(PromptOptions):
    """Of every colorizer."""

    short_px: int | None = option(
        "working size: short side as the network sees it; the run's own if not given", None
    )
    chroma: float | str | None = option(
        "0 grey, 1 as drawn, auto = what the ranker picks; the run's own if not given", None, parse=chroma
    )
    ranker: str | None = option(
        "for chroma=auto: a run of vividness_ranker, or clip:FOLDER_OR_HUB_ID; vividness_ranker if not given",
        None,
        parse=path,
    )
    mask: str | None = option(
        "grey picture of the photo's size: white = colour here, black = keep the photo as it is",
        None,
        parse=path,
    )
    # What `Colorizer.prepare` loads for chroma=auto.
    ranker_network: nn.Module | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.short_px is not None and self.short_px < 1:
            raise ValueError(f"short_px={self.short_px} is no working size; give pixels, or leave it out")
        if self.ranker and self.chroma != AUTO:
            raise ValueError(
                f"ranker={self.ranker} has no effect without chroma=auto; add that, or leave ranker out"
            )
