"""Figures as parts of a page, and as pictures."""

import io
import re

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from fedssl.runs.report.theme import INK, SERIES, TINT, as_png, as_svg, new_figure, themed


@themed
def figure() -> Figure:
    drawn = new_figure(2, 1)
    axes = drawn.subplots()
    axes.plot([0, 1], [0, 1], "o-", color=SERIES[0])
    axes.fill_between([0, 1], [0, 0], [1, 2])
    axes.set_title("a < b", color=INK)
    for left in (0, 2):
        axes.imshow(np.eye(2), cmap=TINT, interpolation="none", extent=(left, left + 1, 0, 1))
    return drawn


def test_text_stays_text_and_nothing_comes_from_elsewhere() -> None:
    svg = as_svg(figure(), 'it "is"', "one")
    assert svg.startswith('<svg role="img" aria-label="it &quot;is&quot;"')
    assert 'viewBox="0 0 144 72"' in svg
    assert "a &lt; b</text>" in svg
    assert "http" not in svg


def test_ids_are_those_that_are_used_and_figures_share_none() -> None:
    drawings = [as_svg(figure(), "", name) for name in ("one", "two")]
    first, second = (re.findall(r'\bid="([^"]*)"', svg) for svg in drawings)
    used = {name for pair in re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', drawings[0]) for name in pair if name}
    assert used
    assert used == set(first)
    assert len(set(first + second)) == len(first) + len(second)


def test_equal_figures_give_equal_pictures() -> None:
    assert as_svg(figure(), "", "x") == as_svg(figure(), "", "x")
    assert as_png(figure()) == as_png(figure())


def test_a_png_stands_on_white() -> None:
    picture = Image.open(io.BytesIO(as_png(figure()))).convert("RGB")
    assert picture.size == (240, 120)
    assert picture.getpixel((0, 0)) == (255, 255, 255)


def test_tint_is_transparent_at_zero_and_where_nothing_is_known() -> None:
    colours = TINT(np.array([0.0, 0.5, 2.0, np.nan]))
    assert colours[:, 3].tolist() == pytest.approx([0.0, 0.5, 1.0, 0.0], abs=0.01)
    assert np.allclose(colours[:3, :3], to_rgb(SERIES[0]))
