"""Tables of texts, for a terminal and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table as RichTable

NARROW = 120
"""Width of a terminal, in characters, below which headings and deviations take lines of their own."""
WORD = 14
"""Length of a word, in characters, from which it may be broken."""
PLAIN: dict[str, Any] = {"box": box.SIMPLE_HEAD, "pad_edge": False, "padding": (0, 1, 0, 0)}


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

    def rich(self, width: int | None = None) -> RichTable:
        """Format the table for a terminal: with lines, or without them to fit into ``width`` characters."""
        shown = RichTable(title=escape(self.title), caption=escape(self.caption), **({} if width is None else PLAIN))
        shown.title_justify = shown.caption_justify = "left"
        gap = "\n" if width is not None and width < NARROW else " "
        # Numbers must not wrap, so text columns take the lack of space. The minimum keeps their words in one piece.
        for column, name in enumerate(self.header[: self.text_columns]):
            words = " ".join([name, *(row[column] for row in self.rows)]).split()
            shown.add_column(escape(name), overflow="fold", min_width=min(max(map(len, words), default=0), WORD))
        for name in self.header[self.text_columns :]:
            shown.add_column(escape(name.replace(" ", gap)), justify="right", no_wrap=width is not None)
        for row in self.rows:
            numbers = (re.sub(r" (?=[±(])", gap, number) for number in row[self.text_columns :])
            shown.add_row(*map(escape, (*row[: self.text_columns], *numbers)))
        return shown

    def markdown(self) -> list[str]:
        """Format the table as lines of Markdown, without title and caption."""
        head, *rows = [
            "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (self.header, *self.rows)
        ]
        return [head, "|" + " --- |" * len(self.header), *rows]
