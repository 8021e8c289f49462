"""The photos and runs that the measurements of colorizers share, and the drawing of all photos.

Shapes: B batch, N photos, H/W pixels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from color.lab import lightness
from lightning_modules.colorizer import Colorizer
from lightning_modules.requests import DrawSettings
from metrics.per_image import to_8_bit
from runs.build import build
from runs.load import Run, load_run
from runs.reading import with_datamodule

BATCH_SIZE = 32
STAGES = {"train": "fit", "val": "validate", "test": "test"}


@dataclass(frozen=True)
class Photos:
    """Photos of a split: images (N, 3, H, W) in [0, 1]; `ids` are their places in it and key the noise."""

    image: Tensor
    captions: list[str]
    ids: list[int]
    names: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, start: int, stop: int) -> "Photos":
        """The photos from `start` to before `stop`."""
        cut = slice(start, stop)
        return Photos(self.image[cut], self.captions[cut], self.ids[cut], self.names[cut])

    def overlap(self, other: "Photos") -> bool:
        """Whether a picture is in both: of a folder without a split `test`, that is `val`."""
        mine, others = ({image.numpy().tobytes() for image in p.image} for p in (self, other))
        return not mine.isdisjoint(others)


# Photos and a seed -> coloured images (B, 3, H, W) in [0, 1].
Draw = Callable[[Photos, int], Tensor]


def load_colorizer(source: str, device: torch.device) -> Run:
    """A run whose module colours photos.

    Raises:
        FileNotFoundError, ValueError: no such run, or one of another kind.
    """
    run = load_run(source)
    if not isinstance(run.module, Colorizer):
        raise ValueError(
            f"{source} is a run of {type(run.module).__name__}, which colours no photos; give runs of colorizers, such as "
            "colorize_controlnet or diffusing_colors"
        )
    run.module.to(device)
    return run


def photos_datamodule(config: dict[str, Any], overrides: list[str], sizes: Mapping[str, int]) -> Any:
    """The data module of a run's config, changed by words such as datamodule.root=DIR.

    Args:
        config: of the first run.
        overrides: the words.
        sizes: run -> the side of the photos that it was trained on.

    Raises:
        ValueError: if the photos would have another size than a run was trained on.
    """
    node = with_datamodule(config, overrides)["datamodule"]
    given = int(node["size_px"])
    unlike = {run: size for run, size in sizes.items() if size != given}
    if unlike:
        listed = ", ".join(f"{run} on {size}" for run, size in unlike.items())
        raise ValueError(
            f"the photos would have datamodule.size_px={given}, but these runs were trained at another size: {listed}; "
            "compare runs of one size"
        )
    return build(node, "datamodule")


def read_photos(
    datamodule: Any, split: str, *, limit: int | None = None, with_captions: bool = False
) -> Photos:
    """So many photos, evenly spread over a split: neighbours in a folder are of one class.

    Raises:
        ValueError: an unknown split, no photo, or captions that are all empty.
    """
    if split not in STAGES:
        raise ValueError(f"split={split} is not train, val or test")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} leaves no photo to measure; give at least 1, or leave it out")
    datamodule.setup(STAGES[split])
    dataset = getattr(datamodule, f"{split}_dataset")
    if len(dataset) == 0:
        raise ValueError(f"the {split} split has no photo; give another datamodule.root or split")
    ids = evenly(len(dataset), limit or len(dataset))
    items = [dataset[index] for index in ids]
    captions = [item["caption"] if with_captions else "" for item in items]
    if with_captions and not any(captions):
        raise ValueError(
            "captions=true, but no photo has a caption; add datamodule.caption=folder_colors or another"
        )
    return Photos(
        torch.stack([item["image"] for item in items]), captions, ids, [item["name"] for item in items]
    )


def evenly(count: int, wanted: int) -> list[int]:
    """At most `wanted` of the numbers below `count`, evenly spread, the first among them.

    Example:
        >>> evenly(10, 4)
        [0, 2, 5, 7]
    """
    wanted = min(count, wanted)
    return [number * count // wanted for number in range(wanted)]


def plain_draw(module: Colorizer, **settings: Any) -> Draw:
    """How the door predict.py draws: the module's own settings except the given ones."""

    def draw(photos: Photos, seed: int) -> Tensor:
        given = lightness(photos.image.to(module.device))
        return module.colorize(given, photos.captions, photos.ids, DrawSettings(seed=seed, **settings))

    return draw


def draw_all(draw: Draw, photos: Photos, seed: int) -> Tensor:
    """All photos as a viewer gets them: uint8 (N, 3, H, W) on the CPU."""
    starts = range(0, len(photos), BATCH_SIZE)
    return torch.cat([eight_bit(draw(photos.part(start, start + BATCH_SIZE), seed)) for start in starts])


def eight_bit(image: Tensor) -> Tensor:
    """uint8 on the CPU of images in [0, 1]."""
    return to_8_bit(image).byte().cpu()


def depends_on_seed(draw: Draw, photos: Photos, drawn: Tensor, seed: int) -> bool:
    """Whether the first batch looks different with another seed than the one that all photos were drawn with."""
    return not torch.equal(eight_bit(draw(photos.part(0, BATCH_SIZE), seed + 1)), drawn[:BATCH_SIZE])


def draw_seeds(draw: Draw, photos: Photos, seeds: list[int]) -> tuple[list[Tensor], bool]:
    """All photos with every seed, or with the first alone where the seed changes nothing; and whether it does."""
    first = draw_all(draw, photos, seeds[0])
    varies = depends_on_seed(draw, photos, first, seeds[0])
    return [first, *[draw_all(draw, photos, seed) for seed in seeds[1:] if varies]], varies


def seeds_that_matter(draw: Draw, photos: Photos, seeds: list[int]) -> list[int]:
    """The seeds, or the first alone where the first batch looks the same with the second."""
    if len(seeds) == 1:
        return seeds
    first = photos.part(0, BATCH_SIZE)
    one, other = (eight_bit(draw(first, seed)) for seed in seeds[:2])
    return seeds[:1] if torch.equal(one, other) else seeds


def whole_numbers(key: str, text: str) -> list[int]:
    """Different whole numbers from words such as 0,1,2.

    Raises:
        ValueError: naming the option.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise ValueError(f"{key}={text} is not a list of whole numbers, such as {key}=0,1,2")
    if len(set(map(int, words))) < len(words):
        raise ValueError(f"{key}={text} names a number twice")
    return [int(word) for word in words]


def yes_or_no(key: str, text: str) -> bool:
    """Of true or false.

    Raises:
        ValueError: naming the option.
    """
    if text not in ("true", "false"):
        raise ValueError(f"{key}={text} is not true or false")
    return text == "true"
