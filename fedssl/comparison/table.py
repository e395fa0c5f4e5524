"""Tables of a comparison: for a terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table as RichTable

from fedssl.comparison.configuration import differences
from fedssl.comparison.measures import ACCURACIES, MEASURES, Measure, mean_and_deviation
from fedssl.comparison.rows import Row, baseline, ratio
from fedssl.runs.results import ENCODERS

NOTE = (
    "Mean ± standard deviation over seeds, values of the last round. Costs are those of a client over the whole run "
    "(mean over clients); kept: most activations that a step keeps for backward. In brackets: share of the cost of "
    "end-to-end training with the same method."
)
FAILED = "not finished"
NARROW = 120
"""Width of a terminal, in characters, below which numbers take two lines."""

WORD = 14
"""Length of a word, in characters, from which it may be broken."""
UNTRAINED = {name: prefix for name, prefix in ENCODERS.items() if prefix}


@dataclass(frozen=True)
class ComparisonTable:
    """Table of rows that can be compared, because they were evaluated on the same data.

    Args:
        data_set: Name of the data.
        common: Facts that all rows share, by name.
        columns: Headings.
        cells: Texts of each row.
        labels: Number of leading label columns.
        failures: Runs without results, with the reason.
    """

    data_set: str
    common: dict[str, str]
    columns: list[str]
    cells: list[list[str]]
    labels: int
    failures: list[str]


def make_tables(rows: Sequence[Row]) -> list[ComparisonTable]:
    """Build one table for each data set."""
    names = list(dict.fromkeys(row.data_set for row in rows))
    return [_table(name, [row for row in rows if row.data_set == name]) for name in names]


def as_rich(table: ComparisonTable, width: int) -> RichTable:
    """Format a table for a terminal of ``width`` characters; shared facts stand below it."""
    common = "; ".join(f"{key} {value}" for key, value in table.common.items())
    caption = "\n".join([common, NOTE, *(f"{FAILED}: {escape(failure)}" for failure in table.failures)])
    shown = RichTable(title=table.data_set, caption=caption, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    shown.title_justify = shown.caption_justify = "left"
    narrow = width < NARROW
    # Numbers must not wrap, so label columns take the lack of space. The minimum width keeps their words in one piece.
    for position, column in enumerate(table.columns[: table.labels]):
        words = " ".join([column, *(cells[position] for cells in table.cells)]).split()
        shown.add_column(column, overflow="fold", min_width=min(max(map(len, words)), WORD))
    for column in table.columns[table.labels :]:
        shown.add_column(column.replace(" ", "\n") if narrow else column, justify="right", no_wrap=True)
    for cells in table.cells:
        words, numbers = cells[: table.labels], cells[table.labels :]
        shown.add_row(*map(escape, words), *(re.sub(r" (?=[±(])", "\n" if narrow else " ", text) for text in numbers))
    return shown


def as_markdown(tables: Sequence[ComparisonTable], command: str) -> str:
    """Format tables as Markdown, for documents.

    Args:
        tables: Tables, one a data set.
        command: Command that reproduces them.
    """
    lines: list[str] = []
    for table in tables:
        lines += [f"## {table.data_set}", "", *(f"- {key}: {value}" for key, value in table.common.items()), ""]
        lines += [*markdown_table(table.columns, table.cells), ""]
        lines += [*(f"- {FAILED}: {failure}" for failure in table.failures), ""] if table.failures else []
    return "\n".join(["# Comparison", "", *lines, NOTE, "", f"`{command}`", ""])


def markdown_table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table in Markdown."""
    head = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return head + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]


def as_csv(rows: Sequence[Row]) -> str:
    """Format rows as CSV, for programs: a line a row, numbers in full, and empty fields for unknown values."""
    lines = [_record(row, rows) for row in rows]
    columns = list(dict.fromkeys(key for line in lines for key in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _table(data_set: str, rows: list[Row]) -> ComparisonTable:
    common, words = _words(rows)
    measures = [measure for measure in MEASURES if any(measure.values(row.results) for row in rows if row.results)]
    columns = [*words, *(measure.title for measure in measures)]
    cells = [line for name in UNTRAINED for line in _untrained(name, rows, len(words) - 1, measures)]
    cells += [
        [texts[position] for texts in words.values()] + [_cell(measure, row, rows) for measure in measures]
        for position, row in enumerate(rows)
    ]
    failures = [f"{row.name}, {failure}" for row in rows for failure in row.failures]
    return ComparisonTable(data_set, common, columns, cells, len(words), failures)


def _words(rows: list[Row]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Split the rows' labels and facts into those that all rows share and the columns in which they differ.

    Rows without results have labels but no facts, so facts are compared among the other rows only.
    """
    ended = [row for row in rows if row.results]
    columns = {key: [row.labels.get(key, "") for row in rows] for row in rows for key in row.labels}
    compared = dict(columns)
    for key in dict.fromkeys(key for row in ended for key in row.facts if key not in columns):
        known = [row.facts.get(key, "") for row in ended]
        # A fact that repeats a label column, such as the scheme on an axis of schemes, gets no column of its own.
        if known not in [[row.labels.get(label, "") for row in ended] for label in columns] or len(set(known)) == 1:
            columns[key], compared[key] = [row.facts.get(key, "") for row in rows], known
    # A single row shares everything with itself; its words stay in columns, or the table would have no label.
    common = {key: texts[0] for key, texts in compared.items() if len(set(texts)) == 1 and len(rows) > 1}
    return common, {key: texts for key, texts in columns.items() if key not in common}


def _untrained(name: str, rows: list[Row], blank: int, measures: list[Measure]) -> list[list[str]]:
    """Line of an untrained encoder; empty if the rows have different encoders.

    One line serves all rows, since the weights at random initialisation depend on encoder and seed only.
    """
    ended = [row for row in rows if row.results]
    if not ended or differences([row.runs[0].configuration["model"]["init_args"]["encoder"] for row in ended]):
        return []
    # The row with most seeds gives the best mean.
    first = max((row.results for row in ended), key=len)
    texts = [measure.text(first, UNTRAINED[name]) if measure in ACCURACIES else "" for measure in measures]
    return [[name, *[""] * blank, *texts]] if any(texts) else []


def _cell(measure: Measure, row: Row, rows: list[Row]) -> str:
    if not row.results:
        return ""
    text = measure.text(row.results)
    against = baseline(row, rows) if measure.is_cost else None
    share = None if against is row else ratio(measure, row, against)  # end-to-end training itself has no share
    return text if share is None else f"{text} ({percent(share)})"


def percent(share: float) -> str:
    """Format a fraction in percent, with a decimal if it is small."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"


def _record(row: Row, rows: Sequence[Row]) -> dict[str, Any]:
    record: dict[str, Any] = {"data set": row.data_set} | row.labels | row.facts
    against = baseline(row, rows) if row.results else None
    for measure in MEASURES:
        values = measure.values(row.results) if row.results else []
        if values:
            record[f"{measure.title} mean"], record[f"{measure.title} sd"] = mean_and_deviation(values)
            share = ratio(measure, row, against) if measure.is_cost else None
            record |= {f"{measure.title} share": share} if share is not None else {}
    return record | {FAILED: "; ".join(row.failures), "folders": " ".join(str(run.folder) for run in row.runs)}
