import pytest
import torch
from skimage import data

from color.lab import grey_image, lab_to_rgb
from color.names import (
    COLOR_NAMES,
    hue_of,
    mean_chroma,
    name_colors,
    strip_grey_phrases,
)

PATCHES = {
    "red": [(255, 0, 0), (220, 20, 60), (139, 0, 0)],
    "orange": [(255, 165, 0), (255, 140, 0)],
    "yellow": [(255, 255, 0), (255, 215, 0), (240, 230, 140)],
    "green": [(0, 128, 0), (0, 255, 0), (87, 108, 67)],
    "cyan": [(0, 255, 255), (0, 128, 128), (64, 224, 208)],
    "blue": [(0, 0, 255), (0, 0, 128), (135, 206, 235), (70, 130, 180)],
    "purple": [(128, 0, 128), (238, 130, 238), (75, 0, 130)],
    "pink": [(255, 192, 203), (255, 105, 180)],
    "brown": [(139, 69, 19), (160, 82, 45), (210, 180, 140)],
    "white": [(255, 255, 255), (255, 255, 240)],
    "black": [(0, 0, 0), (12, 10, 14)],
    "grey": [(128, 128, 128), (60, 60, 60), (192, 192, 192)],
}


def patch(rgb: tuple[int, int, int], width: int = 8) -> torch.Tensor:
    return (torch.tensor(rgb) / 255.0).view(3, 1, 1).expand(3, 8, width)


def photo(name: str) -> torch.Tensor:
    return torch.from_numpy(getattr(data, name)()).permute(2, 0, 1) / 255.0


@pytest.mark.parametrize("name", COLOR_NAMES)
def test_css_colours_get_their_name(name):
    for rgb in PATCHES[name]:
        assert name_colors(patch(rgb)) == [name], rgb


def test_chromatic_names_come_first_and_small_shares_are_left_out():
    image = torch.cat(
        [patch((255, 255, 255), 60), patch((0, 0, 255), 25), patch((255, 0, 0), 5)],
        dim=2,
    )
    assert name_colors(image) == ["blue", "white"]
    assert name_colors(image, min_share=0.05) == ["blue", "red", "white"]
    assert name_colors(image, max_names=1) == ["blue"]


def test_photos_are_named_as_one_sees_them():
    assert name_colors(photo("astronaut"))[0] in ("red", "orange", "brown")
    assert "brown" in name_colors(photo("coffee"))
    assert "blue" in name_colors(photo("rocket"))


@pytest.mark.parametrize("name", COLOR_NAMES[:9])
def test_a_colour_of_the_hue_of_a_name_has_that_name(name):
    star, chroma = {"brown": (40.0, 35.0), "pink": (70.0, 35.0)}.get(name, (60.0, 35.0))
    hue = torch.deg2rad(torch.tensor(hue_of(name)))
    lab = torch.stack([torch.tensor(star), chroma * hue.cos(), chroma * hue.sin()]).view(1, 3, 1, 1)
    assert name_colors(lab_to_rgb(lab)[0].clamp(0, 1)) == [name]


def test_neutral_names_have_no_hue():
    with pytest.raises(ValueError, match="neutral names have no hue"):
        hue_of("grey")


def test_mean_chroma_is_zero_for_grey_and_follows_saturation():
    colored = photo("astronaut")
    assert mean_chroma(colored) > 15
    assert mean_chroma(colored.mean(0, keepdim=True).expand(3, -1, -1)) < 0.1
    assert mean_chroma(grey_image(torch.rand(1, 1, 4, 4))[0]) < 0.1


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A black and white photo of a dog on grass", "a dog on grass"),
        ("a dog, black and white", "a dog"),
        ("black-and-white photograph of two men", "two men"),
        ("An old sepia photograph of a house", "a house"),
        ("a monochrome picture of a cat in the rain", "a cat in the rain"),
        ("a cat in grayscale", "a cat"),
        ("a man in a black and white photo", "a man"),
        ("B&W photo of a bridge", "a bridge"),
        ("a vintage black and white picture of a train, greyscale", "a train"),
        ("this is a black and white photo of a car.", "a car."),
        ("sepia-toned portrait of a woman", "portrait of a woman"),
        ("monochrome", ""),
        ("", ""),
    ],
)
def test_grey_phrases_are_removed(caption, expected):
    assert strip_grey_phrases(caption) == expected


@pytest.mark.parametrize(
    "caption",
    ["a red car", "a black and white cat on a sofa", "a grey house, blue sky"],
)
def test_colours_of_things_stay(caption):
    assert strip_grey_phrases(caption) == caption


def test_a_batch_is_refused():
    with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\)"):
        name_colors(torch.rand(2, 3, 4, 4))
