"""The page as a whole."""

from matplotlib.figure import Figure
from webpage import check_page

from fedssl.runs.report.page import Fact, Listing, Picture, Section, build_page
from fedssl.runs.report.theme import new_axes, themed
from fedssl.utils.tables import Table


@themed
def figure() -> Figure:
    return new_axes()[0]


def page() -> str:
    table = Table(["name", "value"], [["<b>", "1"]], "Numbers", "a & b")
    first = Section("Over the rounds", [Picture("A", figure(), "What it is."), Picture("B", figure(), "")], "Intro.")
    second = Section("Origin", [table, Listing("config.yaml", "a: <1>\n")])
    empty = Section("Nothing", [])
    facts = [Fact("kNN", "1 %")]
    sections = [first, empty, second]
    return build_page("A <title>", "One sentence.", sections, facts=facts, subtitle="sub", footer="foot")


def test_a_page_is_whole_and_needs_no_network() -> None:
    found = check_page(page())
    assert found.headings == ["A <title>", "Over the rounds", "A", "B", "Origin", "Numbers"]
    assert found.anchors == ["#over-the-rounds", "#origin"]
    assert found.tags["svg"] == 2
    assert found.tags["table"] == found.tags["details"] == 1


def test_text_is_escaped() -> None:
    text = page()
    assert '<td class="text">&lt;b&gt;</td>' in text
    assert "a: &lt;1&gt;" in text
    assert "a &amp; b" in text


def test_light_dark_and_paper() -> None:
    text = page()
    dark = text.partition("@media screen and (prefers-color-scheme: dark)")[2]
    assert "filter: invert" in dark.partition("\n}")[0]
    assert "@media print" in text


def test_equal_contents_give_equal_pages() -> None:
    assert page() == page()
