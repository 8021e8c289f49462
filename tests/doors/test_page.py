"""The page is well formed, needs no other file, and shows what it was given."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import torch
from PIL import Image

from doors.page import (
    Line,
    Photos,
    Table,
    curve_svg,
    page,
    paragraph,
    photos_html,
    picture_data,
    table_html,
)


def test_the_page_is_well_formed_and_escapes_what_it_shows():
    picture = torch.zeros(3, 8, 6, dtype=torch.uint8)
    curve = curve_svg(
        "a<b", [Line("x&y", [1, 5, 20], [3.0, 1.0, 2.0], [(2.5, 3.5), None, None]), Line("z", [5], [2.0])]
    )
    text = page(
        "T<1>",
        {
            "": paragraph("a < b"),
            "Figures": table_html(Table({"c<d": "1 < 2"}, {"r&1": ["1.0"], "r2": ["-"]})),
            "Curves": curve,
            "Photos": photos_html([Photos("m<n", [picture], ["e 1<2"]), Photos("truth", [picture])], ['"n"']),
        },
    )
    open_tags: list[str] = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "img"):
                open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

        def handle_startendtag(self, tag, attrs):
            pass

    Checker().feed(text)
    assert open_tags == []
    for shown in ("T&lt;1&gt;", "c&lt;d", "1 &lt; 2", "r&amp;1", "m&lt;n", "e 1&lt;2", "x&amp;y", "a&lt;b"):
        assert shown in text
    assert "href" not in text
    assert text.count("<polyline ") == 2


def test_values_of_a_curve_stand_at_equal_distances_and_inside():
    text = curve_svg("t", [Line("a", [1, 10, 100], [0.0, 5.0, 10.0])])
    points = re.search(r'points="([^"]+)"', text)[1].split()
    x, y = zip(*(map(float, point.split(",")) for point in points), strict=True)
    assert x[1] - x[0] == x[2] - x[1] > 0
    assert y[0] > y[1] > y[2] > 0  # upward
    assert "nan" not in curve_svg("flat", [Line("a", [1], [2.0])])


def test_small_pictures_are_exact_and_large_ones_small():
    for size, kind in ((300, "png"), (700, "jpeg")):
        picture = torch.randint(0, 256, (3, 20, size), dtype=torch.uint8)
        head, _, data = picture_data(picture).partition(",")
        assert head == f"data:image/{kind};base64"
        found = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        assert found.shape == (20, size, 3)
        if kind == "png":
            assert np.array_equal(found, picture.permute(1, 2, 0).numpy())


def test_the_numbers_beside_a_curve_have_room():
    text = curve_svg("t", [Line("a", [1, 2], [-0.012345, 0.06035])])
    for x, number in re.findall(r'<text x="(\d+)"[^>]*text-anchor="end">([^<]+)<', text):
        assert len(number) * 0.64 * 11 <= int(x)  # digits are up to 0.64 of the font's 11 px wide
