"""What a user may ask of a trained module."""

from dataclasses import dataclass, field

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
    short_px: int | None = None  # evaluation's working size; None = the size of the pictures


@dataclass(frozen=True)
class PredictRequest:
    """What to make of one photo."""

    number: int  # of the photo in the sorted input: keys its noise together with the seed
    prompt: str = ""
    num_samples: int = 1
    short_px: int = 64  # working size: the photo's short side as the network sees it
    size_px: tuple[int, int] | None = None  # (H, W) of the result; None = the method's own choice
    draw: DrawSettings = field(default_factory=DrawSettings)

    @property
    def sample_ids(self) -> list[int]:
        """The numbers that key the noise of each sample."""
        return [self.number + k * _SAMPLE_STRIDE for k in range(self.num_samples)]
