"""Self-contained HTML page of figures and tables, for a browser without a network and for paper."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from fedssl.runs.report.theme import GRID, INK, MUTED, PAPER, RULE, SERIES, as_svg
from fedssl.utils.tables import Table

REPORT = "report.html"


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

    def svg(self, name: str) -> Markup:
        """Convert the figure to inline SVG; ``name`` is unique in the page."""
        return Markup(as_svg(self.figure, self.title, name))


@dataclass(frozen=True)
class Listing:
    """Long text, folded until the reader opens it.

    Args:
        title: Name of the text.
        text: Text as in its file.
    """

    title: str
    text: str


Block = Picture | Table | Listing


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
    *,
    caution: str = "",
    facts: Sequence[Fact] = (),
    subtitle: str,
    footer: str,
) -> str:
    """Render the page; equal arguments give equal pages.

    Args:
        title: Heading, and name of the browser's tab.
        summary: Main result, for a reader of one sentence only.
        sections: Sections in order, with distinct titles; those without blocks are left out.
        caution: Reason to doubt the main result, set apart below it; empty for none.
        facts: Numbers below the summary.
        subtitle: Description of the run in one line.
        footer: Origin of the page.
    """
    shown = {
        "sections": [section for section in sections if section.blocks],
        "css": Markup(CSS),
        "facts": facts,
        "caution": caution,
    }
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(HTML)
    return template.render(title=title, summary=summary, subtitle=subtitle, footer=footer, **shown)


# Templates and styles are text in a module, since a Flower app bundle leaves out files of HTML and CSS.
HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<link rel="icon" href="data:,">
<style>{{ css }}</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
<p class="subtitle">{{ subtitle }}</p>
<p class="summary">{{ summary }}</p>
{% if caution %}
<p class="caution">{{ caution }}</p>
{% endif %}
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
{% for block in section.blocks %}
{% if block.text is defined %}
<details class="wide"><summary>{{ block.title }}</summary><pre>{{ block.text }}</pre></details>
{% else %}
<figure{% if block.rows is defined %} class="wide"{% endif %}>
{% if block.title %}<h3>{{ block.title }}</h3>{% endif %}
{% if block.rows is defined %}
<div class="scroll"><table>
{% for row in [block.header] + block.rows|list %}
{% set tag = "td" if loop.index0 else "th" %}
<tr>
{% for cell in row %}<{{ tag }}{% if loop.index <= block.text_columns %} class="text"{% endif %}>{{ cell }}</{{ tag }}>
{% endfor %}</tr>
{% endfor %}
</table></div>
{% else %}
{{ block.svg(section.anchor ~ loop.index) }}
{% endif %}
{% if block.caption %}<figcaption>{{ block.caption }}</figcaption>{% endif %}
</figure>
{% endif %}
{% endfor %}
</div>
</section>
{% endfor %}
</main>
<footer>{{ footer }}</footer>
</body>
</html>
"""

CSS = f"""
:root {{
  color-scheme: light dark;
  --ink: {INK}; --muted: {MUTED}; --rule: {RULE}; --grid: {GRID}; --paper: {PAPER}; --link: {SERIES[0]};
}}
@media screen and (prefers-color-scheme: dark) {{
  :root {{ --ink: #e8eaed; --muted: #a4acb6; --rule: #59616b; --grid: #2d333b; --paper: #171a1f; --link: #4ba8e6; }}
  figure svg {{ filter: invert(0.92) hue-rotate(180deg); }} /* lightness turned round, hues kept */
  #neighbours svg {{ filter: none; background: {PAPER}; }} /* photographs */
}}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, "DejaVu Sans", sans-serif; }}
main, header, footer {{ max-width: 1160px; margin: 0 auto; padding: 0 clamp(16px, 4vw, 40px); }}
header, section {{ padding-top: 38px; }}
h1 {{ font-size: clamp(1.5rem, 4vw, 2.1rem); line-height: 1.2; }}
h1, h2 {{ margin: 0 0 6px; }}
h3 {{ font-size: 1rem; margin: 0 0 8px; }}
p {{ margin: 0 0 12px; max-width: 74ch; }}
a {{ color: var(--link); text-decoration: none; }}
.subtitle, .intro, figcaption, footer, small, dt {{ color: var(--muted); overflow-wrap: anywhere; }}
.summary {{ font-size: 1.12rem; margin: 20px 0 24px; }}
.caution {{ border-left: 4px solid {SERIES[1]}; padding-left: 14px; font-weight: 600; margin-bottom: 24px; }}
.facts {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 12px; margin: 0 0 24px; }}
.fact, pre {{ border: 1px solid var(--grid); border-radius: 10px; padding: 12px 14px; }}
dt, small {{ display: block; font-size: 0.83rem; font-weight: 400; }}
dd {{ margin: 0; font-size: 1.5rem; font-weight: 600; line-height: 1.3; }}
nav {{ display: flex; flex-wrap: wrap; gap: 4px 20px; padding: 10px 0; border-block: 1px solid var(--grid); }}
.blocks {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 30px 40px; }}
figure {{ margin: 0; min-width: 0; }}
figure svg {{ display: block; width: 100%; height: auto; max-width: 560px; overflow: visible; }}
figure svg text {{ font-family: inherit !important; }}
figcaption, footer {{ font-size: 0.88rem; margin-top: 8px; max-width: 60ch; }}
.wide {{ grid-column: 1 / -1; }}
.scroll, pre {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.92rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 6px 22px 6px 0; text-align: right; border-bottom: 1px solid var(--grid); white-space: pre; }}
th {{ color: var(--muted); font-weight: 500; vertical-align: bottom; border-color: var(--rule); white-space: normal; }}
.text {{ text-align: left; white-space: normal; min-width: 5em; }}
summary {{ cursor: pointer; font-weight: 600; }}
footer {{ padding-block: 40px; }}
@media print {{
  body {{ font-size: 10pt; }}
  nav {{ display: none; }}
  .blocks {{ grid-template-columns: repeat(2, 1fr); }}
  figure, .fact, tr {{ break-inside: avoid; }}
  h2, h3, .intro {{ break-after: avoid; }}
  pre {{ white-space: pre-wrap; }}
}}
"""
