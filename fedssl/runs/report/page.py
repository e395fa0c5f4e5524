"""Self-contained HTML page of figures and tables, for a browser without a network and for paper."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from fedssl.runs.report.theme import as_svg, variables

ENVIRONMENT = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)


class Block(Protocol):
    """Element of a section."""

    def html(self, name: str) -> Markup:
        """Render the element; ``name`` is unique in the page."""
        ...


@dataclass(frozen=True)
class Picture:
    """Figure with a caption.

    Args:
        title: Heading of a few words.
        figure: Figure drawn by a function with the decorator ``fedssl.runs.report.theme.themed``.
        caption: Meaning of the figure, in a sentence or two.
    """

    title: str
    figure: Figure
    caption: str

    def html(self, name: str) -> Markup:
        """Render the figure as inline SVG."""
        svg = Markup(as_svg(self.figure, self.title, name))
        return _render(PICTURE, title=self.title, svg=svg, caption=self.caption)


@dataclass(frozen=True)
class Table:
    """Table of text and numbers.

    Args:
        header: Names of the columns.
        rows: Cells, as printed.
        title: Heading of a few words; empty for none.
        caption: Explanation; empty for none.
        text_columns: Number of leading text columns, aligned left; numbers are aligned right.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    caption: str = ""
    text_columns: int = 1

    def html(self, name: str) -> Markup:
        """Render a table as wide as the page, which scrolls where it does not fit."""
        return _render(TABLE, **vars(self))


@dataclass(frozen=True)
class Listing:
    """Long text, folded until the reader opens it.

    Args:
        title: Name of the text.
        text: Text as in its file.
    """

    title: str
    text: str

    def html(self, name: str) -> Markup:
        """Render the text folded."""
        return _render(LISTING, **vars(self))


@dataclass(frozen=True)
class Fact:
    """Number of importance, shown large.

    Args:
        label: Name of the number.
        value: Number with its unit.
        note: Number to compare with; empty for none.
    """

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """Heading and its blocks, which flow into as many columns as there is room for."""

    title: str
    blocks: Sequence[Block]
    intro: str = ""

    @property
    def anchor(self) -> str:
        """Title in the form of an HTML id."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


def build_page(
    title: str,
    summary: str,
    sections: Sequence[Section],
    facts: Sequence[Fact] = (),
    subtitle: str = "",
    footer: str = "",
) -> str:
    """Render the page; equal arguments give equal pages.

    Args:
        title: Heading, and name of the browser's tab.
        summary: Main result, for a reader of one sentence only.
        sections: Sections in order, with distinct titles; those without blocks are left out.
        facts: Numbers below the summary.
        subtitle: Description of the run in one line.
        footer: Origin of the page.
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


HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<link rel="icon" href="data:,">
<style>
:root { {{ light }} }
@media screen and (prefers-color-scheme: dark) { :root { {{ dark }} } }
{{ css }}
</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
<p class="subtitle">{{ subtitle }}</p>
<p class="summary">{{ summary }}</p>
{% if facts %}
<dl class="facts">
{% for fact in facts %}
<div class="fact"><dt>{{ fact.label }}</dt><dd>{{ fact.value }}<small>{{ fact.note }}</small></dd></div>
{% endfor %}
</dl>
{% endif %}
<nav aria-label="Sections">
{% for section in sections %}<a href="#{{ section.anchor }}">{{ section.title }}</a>
{% endfor %}
</nav>
</header>
<main>
{% for section in sections %}
<section id="{{ section.anchor }}">
<h2>{{ section.title }}</h2>
{% if section.intro %}<p class="intro">{{ section.intro }}</p>{% endif %}
<div class="blocks">
{% for block in section.blocks %}{{ block.html(section.anchor ~ loop.index) }}
{% endfor %}
</div>
</section>
{% endfor %}
</main>
<footer>{{ footer }}</footer>
</body>
</html>
"""

PICTURE = """<figure>
<h3>{{ title }}</h3>
{{ svg }}
<figcaption>{{ caption }}</figcaption>
</figure>"""

TABLE = """<figure class="wide">
{% if title %}<h3>{{ title }}</h3>{% endif %}
<div class="scroll"><table>
<thead><tr>
{% for cell in header %}<th scope="col"{% if loop.index <= text_columns %} class="text"{% endif %}>{{ cell }}</th>
{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}<tr>
{% for cell in row %}<td{% if loop.index <= text_columns %} class="text"{% endif %}>{{ cell }}</td>
{% endfor %}</tr>
{% endfor %}</tbody>
</table></div>
{% if caption %}<figcaption>{{ caption }}</figcaption>{% endif %}
</figure>"""

LISTING = """<details class="wide"><summary>{{ title }}</summary><pre>{{ text }}</pre></details>"""


CSS = """
* { box-sizing: border-box; }
html { color-scheme: light dark; scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif;
}
main, header, footer { max-width: 1160px; margin: 0 auto; padding: 0 clamp(16px, 4vw, 40px); }
header { padding-top: 40px; }
h1 { font-size: clamp(1.5rem, 4vw, 2.1rem); line-height: 1.2; margin: 0 0 4px; letter-spacing: -0.015em; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 0 0 6px; letter-spacing: -0.01em; }
h3 { font-size: 1rem; margin: 0 0 8px; font-weight: 600; }
p { margin: 0 0 12px; max-width: 74ch; }
a { color: var(--series-0); }
.subtitle, figcaption, .intro, footer, .fact small { color: var(--muted); }
.subtitle { margin-bottom: 20px; overflow-wrap: anywhere; }
.summary { font-size: 1.12rem; max-width: 68ch; margin-bottom: 24px; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 12px; margin: 0 0 24px; }
.fact { border: 1px solid var(--grid); border-radius: 10px; padding: 12px 14px; margin: 0; }
.fact dt { color: var(--muted); font-size: 0.83rem; }
.fact dd { margin: 0; font-size: 1.5rem; font-weight: 600; line-height: 1.3; letter-spacing: -0.01em; }
.fact small { display: block; font-size: 0.83rem; font-weight: 400; letter-spacing: 0; line-height: 1.4; }
nav {
  display: flex; flex-wrap: wrap; gap: 4px 20px; padding: 10px 0;
  border-block: 1px solid var(--grid); font-size: 0.92rem;
}
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
section { padding: 36px 0 4px; scroll-margin-top: 8px; }
.intro { margin-bottom: 18px; }
.blocks {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr));
  gap: 30px 40px; align-items: start;
}
figure { margin: 0; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; max-width: 560px; overflow: visible; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figure svg text { font-family: inherit !important; }
figcaption { font-size: 0.88rem; line-height: 1.45; margin-top: 8px; max-width: 60ch; }
.wide { grid-column: 1 / -1; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 22px 6px 0; text-align: right; border-bottom: 1px solid var(--grid); white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--muted); font-weight: 500; vertical-align: bottom; border-bottom-color: var(--rule); }
.text { text-align: left; }
td.text { white-space: normal; overflow-wrap: break-word; min-width: 5em; }
details summary { cursor: pointer; font-weight: 600; }
pre {
  overflow-x: auto; font: 0.82rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  border: 1px solid var(--grid); border-radius: 10px; padding: 14px 16px; margin: 10px 0 0;
}
footer { padding-block: 40px 48px; font-size: 0.88rem; overflow-wrap: anywhere; }
@media (max-width: 600px) {
  body { font-size: 15px; }
  header { padding-top: 24px; }
  .facts { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .fact dd { font-size: 1.25rem; }
  th, td { padding-right: 14px; }
}
@media print {
  html { color-scheme: light; }
  body { font-size: 10pt; }
  nav { display: none; }
  main, header, footer { max-width: none; padding-inline: 0; }
  .blocks { grid-template-columns: repeat(2, 1fr); gap: 18px 24px; }
  figure, .fact, tr { break-inside: avoid; }
  h2, h3, .intro { break-after: avoid; }
  section { padding-top: 20px; }
  .facts { grid-template-columns: repeat(3, 1fr); }
  .scroll { overflow: visible; }
  table { font-size: 8.5pt; }
  th, td { padding: 3px 12px 3px 0; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
}
"""
