"""What a user may ask of a trained module."""

from dataclasses import dataclass, field

from torch import Tensor, nn

from color.hints import KnownColors

# Samples of one photo are keyed this far apart, so that asking for more never changes the first ones.
_SAMPLE_STRIDE = 1 << 32


@dataclass(frozen=True)
class DrawSettings:
    """How samples are drawn; None keeps what the module was built with."""

    num_steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str = ""
    seed: int = 0
    chroma_scale: float | None = None  # of a colorizer: 0 grey, 1 as drawn
    ranker: nn.Module | None = (
        None  # picks the chroma scale instead: images (B, 3, H, W) in [0, 1] -> scores (B,)
    )
    short_px: int | None = None  # evaluation's working size; None = the size of the pictures


@dataclass(frozen=True, eq=False)
class Edits:
    """What a user gives a colorizer beside the photo itself, at the photo's size."""

    hints: KnownColors | None = None
    region: Tensor | None = None  # uint8 (H, W): 255 = colour here, 0 = keep what the photo has
    start: float = (
        1.0  # level m of a bridge in (0, 1]: 1 = from grey; less = the photo has kept 1 - m of its colour
    )


@dataclass(frozen=True)
class PredictRequest:
    """What to make of one photo."""

    number: int  # of the photo in the sorted input: keys its noise together with the seed
    name: str = ""  # of the photo, for the log
    prompt: str = ""
    num_samples: int = 1
    short_px: int = 64  # working size: the photo's short side as the network sees it
    size_px: tuple[int, int] | None = None  # (H, W) of the result; None = the method's own choice
    draw: DrawSettings = field(default_factory=DrawSettings)
    edits: Edits = field(default_factory=Edits)

    @property
    def sample_ids(self) -> list[int]:
        """The numbers that key the noise of each sample."""
        return [self.number + k * _SAMPLE_STRIDE for k in range(self.num_samples)]
