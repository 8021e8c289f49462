"""The part that data modules of files share: checked options, and photos that can be read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from datamodules.decode import check_image
from datamodules.image_files import printable
from datamodules.option_checks import check_share
from datamodules.photo_dataset import PhotoDataset, PhotoTransform
from datamodules.readable import readable
from datamodules.step_datamodule import StepDataModule


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
        self, paths: list[Path], *, what: str, transform: PhotoTransform, decode: bool
    ) -> PhotoDataset:
        """The readable ones of some image files, without captions.

        `what` says in messages which part of the data they are; with `decode` files are checked by decoding them, not by
        header and end mark alone.
        """

        def read(path: Path) -> Tensor | None:
            check_image(path, max_pixels=transform.max_pixels)
            image = transform.stored(path) if self.keep or decode else None
            return image if self.keep else None

        what = f"{what} of {str(self.folder)!r}"
        found = readable(paths, read, what=what, max_share=self.max_unreadable_share)
        return PhotoDataset(
            [path for path, _ in found],
            names=[printable(path.relative_to(self.folder)) for path, _ in found],
            transform=transform,
            seed=self.seed,
            stored=[image for _, image in found if image is not None] if self.keep else None,
        )
