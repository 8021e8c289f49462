"""The part that data modules of files share: their options, and which files can be read before anything is trained on them."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from torch import Tensor

from datamodules.decode import UnreadableImage, attempts, check_image
from datamodules.image_files import printable
from datamodules.options import check_share
from datamodules.photo_dataset import PhotoDataset, PhotoTransform
from datamodules.step_datamodule import StepDataModule
from datamodules.unreadable import Unusable

log = logging.getLogger(__name__)

F = TypeVar("F")
V = TypeVar("V")


@dataclass(kw_only=True, eq=False, repr=False)
class FolderDataModule(StepDataModule):
    """Files below a folder, of which some may be unreadable."""

    root: str
    eval_crop: Literal["center", "resize"] = "center"  # resize = all of the image, squeezed to a square
    flip_prob: float = 0.5  # of a left-right flip in training
    image_cache: Literal["none", "memory"] = "none"  # decode at every access, or once
    max_pixels: int = 64_000_000  # files with more are skipped before decoding
    max_unreadable_share: float = 0.5  # of a split's files, that may be skipped before training

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(max_unreadable_share=self.max_unreadable_share)
        self.folder, self.keep = Path(self.root), self.image_cache == "memory"

    def photos(
        self, paths: list[Path], split: str, *, transform: PhotoTransform, domain: str = ""
    ) -> PhotoDataset:
        """The readable ones of a split's image files, without captions.

        Files of val and test are checked by decoding them, those of train by header and end mark unless they are kept.
        """

        def read(path: Path) -> Tensor | None:
            check_image(path, max_pixels=transform.max_pixels)
            image = transform.stored(path) if self.keep or split != "train" else None
            return image if self.keep else None

        found = self.readable(paths, read, what=f"{split} split{domain}")
        return PhotoDataset(
            [path for path, _ in found],
            names=[self.name_of(path) for path, _ in found],
            transform=transform,
            seed=self.seed,
            stored=[image for _, image in found if image is not None] if self.keep else None,
        )

    def name_of(self, path: Path) -> str:
        """A file's unique name in batches."""
        return printable(path.relative_to(self.folder))

    def readable(self, files: Sequence[F], read: Callable[[F], V], *, what: str) -> list[tuple[F, V]]:
        """Those of `files` that can be read, in their order, each with read(file); the others are logged in one warning.

        `what` says in messages which part of the data they are.

        Raises:
            ValueError: If there are none, more than max_unreadable_share are unreadable, or for one that is Unusable: it shows
                a mistake about all of them.
        """
        what = f"{what} of {str(self.folder)!r}"
        if not files:
            raise ValueError(f"there is no {what}; add a folder with images for it")
        results = attempts(files, read)
        broken = [result for _, result in results if isinstance(result, UnreadableImage)]
        unusable = [error for error in broken if isinstance(error, Unusable)]
        if unusable:
            others = f" ({len(unusable) - 1} other files have such faults)" if len(unusable) > 1 else ""
            raise ValueError(f"{unusable[0]}{others}")
        share, skipped = len(broken) / len(files), f"{len(broken)} of {len(files)} images"
        if broken:
            lines = "\n".join(f"  {str(error.path)!r}: {error.reason}" for error in broken)
            log.warning("skipped %s that cannot be read (%.1f %%):\n%s", skipped, 100 * share, lines)
        if len(broken) == len(files):
            raise ValueError(
                f"none of the {len(files)} images in the {what} can be read; replace them or set datamodule.root to another "
                "folder (the log lists each file with its reason)"
            )
        if share > self.max_unreadable_share:
            raise ValueError(
                f"{skipped} cannot be read ({100 * share:.0f} %), more than datamodule.max_unreadable_share="
                f"{self.max_unreadable_share:g} allows; the first is {str(broken[0].path)!r}: {broken[0].reason} (the log "
                "lists all); replace the files, or raise datamodule.max_unreadable_share"
            )
        return [(file, result) for file, result in results if not isinstance(result, UnreadableImage)]
