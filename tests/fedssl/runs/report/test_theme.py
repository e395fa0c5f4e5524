"""Figures follow the page's colours."""

import io
import re

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from fedssl.runs.report.theme import DARK, INK, SERIES, as_png, as_svg, new_axes, themed, tint, variables


@themed
def figure() -> Figure:
    drawn, axes = new_axes(2, 1)
    axes.plot([0, 1], [0, 1], "o-", color=SERIES[0])
    axes.set_title("a < b", color=INK)
    axes.imshow(tint(np.eye(2)), interpolation="none")
    return drawn


def test_colours_become_variables_and_text_stays_text() -> None:
    svg = as_svg(figure(), 'it "is"', "one")
    assert svg.startswith('<svg role="img" aria-label="it &quot;is&quot;" viewBox="0 0 144 72">')
    assert "var(--series-0)" in svg
    assert "a &lt; b</text>" in svg
    assert not [color for color in DARK if color in svg.lower()]
    assert "http" not in svg


def test_ids_are_those_that_are_used_and_bear_the_prefix() -> None:
    svg = as_svg(figure(), "", "one")
    ids = set(re.findall(r'\bid="([^"]*)"', svg))
    used = set(re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', svg))
    assert {name for pair in used for name in pair if name} <= ids
    assert all(name.startswith("one-") for name in ids)


def test_equal_figures_give_equal_pictures() -> None:
    assert as_svg(figure(), "", "x") == as_svg(figure(), "", "x")
    assert as_png(figure()) == as_png(figure())


def test_a_png_stands_on_white() -> None:
    picture = Image.open(io.BytesIO(as_png(figure()))).convert("RGB")
    assert picture.size == (240, 120)
    assert picture.getpixel((0, 0)) == (255, 255, 255)


def test_tint_is_transparent_at_zero_and_where_nothing_is_known() -> None:
    colours = tint(np.array([0.0, 0.5, 2.0, np.nan]), "#ff0080")
    assert colours[:, 3].tolist() == [0.0, 0.5, 1.0, 0.0]
    assert np.allclose(colours[:, :3], [1.0, 0.0, 128 / 255])


def test_every_colour_has_a_dark_partner() -> None:
    assert set(SERIES) | {INK} <= set(DARK)
    names = [re.findall(r"(--[\w-]+):", variables(dark)) for dark in (False, True)]
    assert names[0] == names[1]
    assert len(set(names[0])) == len(DARK)
