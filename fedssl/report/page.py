"""A self-contained HTML page of figures and tables, for a browser without a network and for paper."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from fedssl.report.stylesheet import CSS
from fedssl.report.template import HTML, LISTING, PICTURE, TABLE
from fedssl.report.theme import as_svg, variables

ENVIRONMENT = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)


class Block(Protocol):
    """Something that stands in a section."""

    def html(self, name: str) -> Markup:
        """The element; ``name`` is unique in the page."""
        ...


@dataclass(frozen=True)
class Picture:
    """A figure with what it means.

    Args:
        title: A few words.
        figure: Drawn by a :func:`fedssl.report.theme.themed` function.
        caption: What to read off it, in a sentence or two.
    """

    title: str
    figure: Figure
    caption: str

    def html(self, name: str) -> Markup:
        """Inline SVG."""
        svg = Markup(as_svg(self.figure, self.title, name))
        return _render(PICTURE, title=self.title, svg=svg, caption=self.caption)


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers.

    Args:
        header: Names of the columns.
        rows: Cells, as they are to be printed.
        title: A few words, or nothing.
        caption: What to know about it, or nothing.
        text_columns: Leading columns that are text and stand at the left; numbers stand at the right.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    caption: str = ""
    text_columns: int = 1

    def html(self, name: str) -> Markup:
        """A table as wide as the page, which scrolls where it does not fit."""
        return _render(TABLE, **vars(self))


@dataclass(frozen=True)
class Listing:
    """Long text, folded until somebody wants it.

    Args:
        title: What it is.
        text: As it stands in its file.
    """

    title: str
    text: str

    def html(self, name: str) -> Markup:
        """Folded text."""
        return _render(LISTING, **vars(self))


@dataclass(frozen=True)
class Fact:
    """A number that matters, shown large.

    Args:
        label: What it is.
        value: With its unit.
        note: What to compare it with, or nothing.
    """

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A heading with what belongs to it; blocks flow into as many columns as there is room for."""

    title: str
    blocks: Sequence[Block]
    intro: str = ""

    @property
    def anchor(self) -> str:
        """The title as an id."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


def build_page(
    title: str,
    summary: str,
    sections: Sequence[Section],
    facts: Sequence[Fact] = (),
    subtitle: str = "",
    footer: str = "",
) -> str:
    """The page as text; equal arguments give equal pages.

    Args:
        title: Heading, and name of the browser's tab.
        summary: What a reader should know who reads one sentence only.
        sections: In order, each with a title of its own; those without blocks are left out.
        facts: Numbers below the summary.
        subtitle: What was run, in one line.
        footer: Where it comes from.
    """
    return _render(
        HTML,
        title=title,
        summary=summary,
        sections=[section for section in sections if section.blocks],
        facts=facts,
        subtitle=subtitle,
        footer=footer,
        css=Markup(CSS),
        light=Markup(variables(dark=False)),
        dark=Markup(variables(dark=True)),
    )


def _render(template: str, **values: Any) -> Markup:
    return Markup(ENVIRONMENT.from_string(template).render(**values))
