"""What users set when they translate pictures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lightning_modules.options import PromptOptions, option, path

_EXPECTED = "write conds='NAME=FILE_OR_DIR; NAME=FILE_OR_DIR'"


def cond_places(text: str) -> dict[str, str]:
    """Files or folders of further conditions by name, of a text `NAME=FILE_OR_DIR; NAME=FILE_OR_DIR`.

    Raises:
        ValueError: another text, or a name twice.
    """
    places: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, _, place = (word.strip() for word in part.partition("="))
        if not (name and place) or name in places:
            raise ValueError(f"conds={text} has '{part}', which is no new condition; {_EXPECTED}")
        places[name] = path(place)
    return places


@dataclass(frozen=True, kw_only=True)
class TranslationOptions(PromptOptions):
    """Of every method that makes a picture from another."""

    short_px: int | None = option(
        "working size: short side as the network sees it; the run's own if not given", None
    )
    conds: Mapping[str, str] | None = option(
        "further conditions: 'NAME=FILE_OR_DIR; ...', in a folder by the input's name",
        None,
        parse=cond_places,
    )
    # The folders of conds=, which `Translator.prepare` lists.
    folders: Mapping[str, Mapping[str, Path]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.short_px is not None and self.short_px < 1:
            raise ValueError(f"short_px={self.short_px} is no working size; give pixels, or leave it out")

    def cond_file(self, name: str, photo: str) -> Path:
        """The picture of the condition `name` for the input file of this path in its folder.

        Raises:
            FileNotFoundError: none is given, or the folder has no picture of that name.
        """
        place = (self.conds or {}).get(name)
        if place is None:
            raise FileNotFoundError(f"this model also takes {name}; give conds='{name}=FILE_OR_DIR'")
        if not Path(place).is_dir():
            return Path(place)
        stem = Path(photo).with_suffix("").as_posix()
        if stem not in self.folders[name]:
            raise FileNotFoundError(f"conds= names {place} for {name}, which holds no picture called {stem}")
        return self.folders[name][stem]
