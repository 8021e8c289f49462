"""What users can give a colorizer that walks from the grey photo: hints of its colours, and a start on the way."""

from dataclasses import dataclass

from torch import Tensor

from color.hints import known_map
from diffusion.bridge_paths import BridgePath
from lightning_modules.color_edits import read_hints
from lightning_modules.color_options import ColorizationOptions
from lightning_modules.options import option, path


@dataclass(frozen=True, kw_only=True)
class WalkOptions(ColorizationOptions):
    """Of a colorizer that walks from the photo."""

    hints: str | None = option(
        "known colours: PNG of the photo's size, opaque where known, or points as in 'x,y,#rrggbb; x,y,radius,#rrggbb'",
        None,
        parse=path,
    )
    start: float = option(
        "1 from grey; less = the photo has kept 1 - start of its colour, go on from there", 1.0
    )

    def hint_map(self, size_px: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """The hints as a map (1, 3, h, w) of (h, w) cells, of a photo of (H, W) pixels; see `color.hints.known_map`."""
        assert self.hints
        return known_map(read_hints(self.hints, size_px), size=size)

    def check_walk(self, path: BridgePath, *, takes_hints: bool) -> None:
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
