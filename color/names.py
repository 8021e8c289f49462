"""Colour words for pictures, from Lab statistics: captions, filters for near-grey pictures, and hue angles.

Hue borders are degrees of atan2(b*, a*) (D65) placed between the CSS colours of the same names: red 40, orange 74,
yellow 103, green 136, cyan 196, blue 306 (sky blue 230 to 260), purple 328, pink 350 to 8.
"""

import re

import torch
from torch import Tensor

from color.lab import rgb_to_lab

# (name, first degree of its sector); a sector ends where the next begins, pink wraps around 0.
_SECTORS = (
    ("pink", 0.0),
    ("red", 16.0),
    ("orange", 50.0),
    ("yellow", 82.0),
    ("green", 110.0),
    ("cyan", 175.0),
    ("blue", 222.0),
    ("purple", 308.0),
    ("pink", 338.0),
)
# The angle that a word stands for: the CSS colour's, but blue halfway between sky blue and pure blue, which is what
# photos show, and brown the hue of dark orange.
_HUES = {
    "red": 40.0,
    "orange": 66.0,
    "yellow": 98.0,
    "green": 132.0,
    "cyan": 196.0,
    "blue": 270.0,
    "purple": 320.0,
    "pink": 355.0,
    "brown": 62.0,
}
COLOR_NAMES = (*_HUES, "white", "black", "grey")
# Chroma below which a pixel has no colour name; near black the eye needs more of it.
_GREY_BELOW = 10.0
_DARK_GREY_BELOW = 18.0

_ALWAYS_GREY = r"(?:monochrom(?:e|atic)|gr[ae]y[\s-]?scale|sepia(?:[\s-]toned)?)"
_GREY_WORDS = rf"(?:black[\s-]*(?:and|&|n)[\s-]*white|b\s*(?:&|/)\s*w|{_ALWAYS_GREY})"
_PICTURE = r"(?:photo(?:graph)?|picture|image|shot|print|drawing|snapshot|version|film|style)s?"
_GREY_PHRASES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # "a black and white photo of", also with adjectives between: "an old black and white photograph of".
        (
            rf"\b(?:(?:an?|the|this\s+is\s+an?)\s+)?(?:(?:old|vintage|antique|faded)[\s,]+)*{_GREY_WORDS}[\s,]+"
            rf"(?:(?:old|vintage|antique)\s+)*{_PICTURE}\s+(?:of|showing|depicting)\s+"
        ),
        # "..., in black and white", "in a sepia style".
        rf"[\s,]*\b(?:(?:shown|taken|shot)\s+)?in\s+(?:an?\s+)?{_GREY_WORDS}(?:\s+{_PICTURE})?\b",
        # ", black and white photo" between commas or at the end.
        rf",\s*{_GREY_WORDS}(?:\s+{_PICTURE})?\s*(?=[,.;]|$)",
        # "sepia photo" left inside a sentence keeps its noun; bare "monochrome" goes.
        rf"\b{_GREY_WORDS}(?=\s+{_PICTURE}\b)\s+",
        rf"\b{_ALWAYS_GREY}\b,?\s*",
    )
)


def name_colors(image: Tensor, *, max_names: int = 3, min_share: float = 0.08) -> list[str]:
    """Returns the picture's dominant colour names: chromatic ones first, each group by prominence.

    Prominence of a chromatic name is the sum of its pixels' chroma, of a neutral one its number of pixels.

    Args:
        image: one picture (3, H, W), sRGB in [0, 1].
        max_names: largest number of names.
        min_share: least share of the pixels that a name must cover; up to 1 / 12 there is at least one name.

    Example:
        >>> name_colors(torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1).expand(3, 8, 8))
        ['red']
    """
    star, a, b = rgb_to_lab(image[None])[0].flatten(1)
    chroma = torch.hypot(a, b)
    index = _name_index(star, chroma, torch.rad2deg(torch.atan2(b, a)) % 360.0)
    count = torch.bincount(index, minlength=len(COLOR_NAMES)).double()
    colour = torch.bincount(index, weights=chroma, minlength=len(COLOR_NAMES)).double()
    chromatic = torch.arange(len(COLOR_NAMES), device=index.device) < len(_HUES)
    # No picture has as many neutral pixels as the offset that sorts neutral names behind every chromatic one.
    prominence = torch.where(chromatic, colour + 1e12, count)
    prominence = prominence.masked_fill(count < min_share * index.numel(), -1.0)
    values, order = prominence.sort(descending=True, stable=True)
    return [COLOR_NAMES[i] for i in order[values >= 0].tolist()][:max_names]


def hue_of(name: str) -> float:
    """Returns the Lab hue angle, in degrees, of a chromatic colour name; ValueError for another word."""
    if name not in _HUES:
        raise ValueError(
            f"hue_of got {name!r}, expected one of {', '.join(_HUES)}; neutral names have no hue"
        )
    return _HUES[name]


def mean_chroma(image: Tensor) -> Tensor:
    """Returns the mean Lab chroma of one image (3, H, W) in [0, 1].

    A photo of a grey scene has about 0 to 3, an ordinary colour photo 15 to 40.
    """
    lab = rgb_to_lab(image[None])
    return torch.hypot(lab[:, 1], lab[:, 2]).mean(dim=(1, 2))[0]


def strip_grey_phrases(caption: str) -> str:
    """Returns the caption without words that say the picture has no colour.

    A model that colours is trained on colour pictures whose captions may come from their grey versions; such words
    then teach it to answer in grey (COCO-LC removed at least 2598 of 59371 captions for this).

    Example:
        >>> strip_grey_phrases("A black and white photo of a dog on grass")
        'a dog on grass'
    """
    for phrase in _GREY_PHRASES:
        caption = phrase.sub(" ", caption)
    caption = re.sub(r"\s+([,.;])", r"\1", re.sub(r"\s{2,}", " ", caption))
    return caption.strip(" ,;")


def _name_index(star: Tensor, chroma: Tensor, hue: Tensor) -> Tensor:
    """Index into COLOR_NAMES for pixels (N,) of lightness L*, chroma and hue angle in degrees."""
    position = {name: i for i, name in enumerate(COLOR_NAMES)}
    borders = torch.tensor([degrees for _, degrees in _SECTORS[1:]], device=hue.device, dtype=hue.dtype)
    names = torch.tensor([position[name] for name, _ in _SECTORS], device=hue.device)
    index = names[torch.bucketize(hue, borders, right=True)]

    def assign(name: str, where: Tensor) -> None:
        index.masked_fill_(where, position[name])

    # Brown is dark or dull orange; pink also light, dull red or purple.
    assign("brown", (hue >= 36) & (hue < 95) & ((star < 50) & (chroma < 60) | (chroma < 32)))
    assign("pink", (star > 65) & (chroma < 48) & ((hue >= 16) & (hue < 36) | (hue >= 318) & (hue < 338)))
    neutral = chroma < torch.where(star < 20, _DARK_GREY_BELOW, _GREY_BELOW)
    assign("grey", neutral)
    assign("white", neutral & (star > 85))
    assign("black", neutral & (star < 20))
    return index
