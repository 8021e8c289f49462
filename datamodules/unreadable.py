"""What is raised for a file that can't be used."""

from pathlib import Path


class UnreadableImage(ValueError):  # noqa: N818
    """A file that can't be used as an image; `path` and `reason` say which and why."""

    sentence = "cannot read the image {!r}: {}"

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(self.sentence.format(str(path), reason))
        self.path, self.reason = path, reason


class Unusable(UnreadableImage):
    """A file that can be read, and shows a mistake about all of its kind: it stops a run instead of being skipped."""


class UnusablePair(Unusable):
    """A picture that does not fit its partner."""

    sentence = "the picture {!r} {}"


class UnusableMask(Unusable):
    """A mask that can be read, but is none for its image or its classes."""

    sentence = "the mask {!r} {}"
