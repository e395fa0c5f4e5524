"""Tables of a comparison: for a terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedssl.comparison.differences import difference, headline, table_of_differences
from fedssl.comparison.equal_cost import at_equal_cost, table_at_equal_cost
from fedssl.comparison.rows import Row, baseline, reference, shares
from fedssl.comparison.run import differences
from fedssl.comparison.trials import table_of_trials
from fedssl.runs.baselines import BASELINES, MAJORITY
from fedssl.runs.results import ACCURACIES, MEASURES, RAW_PIXELS, Measure, mean_and_deviation
from fedssl.utils.tables import Table

NOTE = (
    "Mean ± standard deviation over seeds, values of the last round; intervals, elsewhere, stand in square brackets. "
    "Costs are those of a client over the whole run (mean over clients); kept: most activations that a step keeps for "
    "backward. In brackets: share of the cost of end-to-end training with the same method."
)
FAILED = "not finished"
WITHOUT_ENCODER = (RAW_PIXELS, MAJORITY)


@dataclass(frozen=True, kw_only=True)
class ComparisonTable(Table):
    """Table of rows that can be compared, because they were evaluated on the same data; its title is their name.

    Args:
        common: Facts that all rows share, by name.
        failures: Runs without results, with the reason.
        headline: Sentence on which row is best, if any.
        further: Paired differences, accuracies at equal cost and trials of the tuning, as far as there are any.
    """

    common: dict[str, str]
    failures: list[str]
    headline: str
    further: list[Table]


def make_tables(rows: Sequence[Row], called: str | None = None) -> list[ComparisonTable]:
    """Build one table for each data set.

    Args:
        rows: Rows of the comparison.
        called: Name or label of the row that differences are taken to; ``None`` for end-to-end training.
    """
    names = list(dict.fromkeys(row.data_set for row in rows))
    return [_table(name, [row for row in rows if row.data_set == name], called) for name in names]


def for_terminal(table: ComparisonTable) -> Table:
    """Add shared facts, explanation and failures to the caption."""
    common = "; ".join(f"{key} {value}" for key, value in table.common.items())
    failures = [f"{FAILED}: {failure}" for failure in table.failures]
    return replace(table, caption="\n".join([common, NOTE, *failures]))


def as_markdown(tables: Sequence[ComparisonTable], command: str) -> str:
    """Format tables as Markdown, for documents.

    Args:
        tables: Tables, one a data set.
        command: Command that reproduces them.
    """
    lines: list[str] = []
    for table in tables:
        lines += [
            f"## {table.title}",
            "",
            table.headline,
            "",
            *(f"- {key}: {value}" for key, value in table.common.items()),
            "",
        ]
        lines += [*table.markdown(), ""]
        lines += [*(f"- {FAILED}: {failure}" for failure in table.failures), ""] if table.failures else []
        lines += [NOTE, ""]
        for each in table.further:
            lines += [f"### {each.title}", "", *each.markdown(), "", each.caption, ""]
    return "\n".join(["# Comparison", "", *lines, f"`{command}`", ""])


def as_csv(rows: Sequence[Row], called: str | None = None) -> str:
    """Format rows as CSV, for programs: a line a row, numbers in full, and empty fields for unknown values.

    Args:
        rows: Rows of the comparison.
        called: Name or label of the row that differences are taken to; ``None`` for end-to-end training.
    """
    sets = [[other for other in rows if other.data_set == row.data_set] for row in rows]
    lines = [_record(row, others, called) for row, others in zip(rows, sets, strict=True)]
    columns = list(dict.fromkeys(key for line in lines for key in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _table(data_set: str, rows: list[Row], called: str | None) -> ComparisonTable:
    common, words = _words(rows)
    measures = [measure for measure in MEASURES if any(measure.values(row.results) for row in rows)]
    cells = [line for name in BASELINES for line in _baseline(name, rows, len(words) - 1, measures)]
    for row, *texts in zip(rows, *words.values(), strict=True):
        cells.append([*texts, *(cell(measure, row, rows) for measure in measures)])
    tried = table_of_trials({row.name: row.trials for row in rows})
    further = (table_of_differences(rows, called), table_at_equal_cost(rows), tried)
    return ComparisonTable(
        [*words, *(measure.title for measure in measures)],
        cells,
        data_set,
        NOTE,
        text_columns=len(words),
        common=common,
        failures=[f"{row.name}, {failure}" for row in rows for failure in row.failures],
        headline=headline(rows),
        further=[each for each in further if each],
    )


def _words(rows: list[Row]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Split the rows' labels and facts into those that all rows share and the columns in which they differ.

    Rows without results have labels but no facts, so facts are compared among the other rows only.
    """
    ended = [row for row in rows if row.results]
    labels = {key: [row.labels.get(key, "") for row in rows] for row in rows for key in row.labels}
    facts = {key: [row.facts.get(key, "") for row in ended] for row in ended for key in row.facts if key not in labels}
    # A fact that repeats a label, such as the scheme on an axis of schemes, gets no column of its own.
    told = [[row.labels.get(key, "") for row in ended] for key in labels]
    common: dict[str, str] = {}
    columns: dict[str, list[str]] = {}
    for key, texts in (labels | facts).items():
        alike = len(set(texts)) == 1
        # A single row shares everything with itself; its words stay in columns, or the table would have no label.
        if alike and len(rows) > 1:
            common[key] = texts[0]
        elif alike or key in labels or texts not in told:
            columns[key] = [(row.facts | row.labels).get(key, "") for row in rows]
    return common, columns


def _baseline(name: str, rows: list[Row], blank: int, measures: list[Measure]) -> list[list[str]]:
    """Return the line of a baseline; empty if the runs do not have it, or have it of different encoders.

    One line serves all rows: the weights at random initialisation depend on encoder and seed only, and what needs no
    encoder on the data.
    """
    ended, prefix = [row for row in rows if row.results], BASELINES[name]
    encoders = [row.runs[0].configuration["model"]["init_args"]["encoder"] for row in ended]
    if not ended or (prefix not in WITHOUT_ENCODER and differences(encoders)):
        return []
    # The row with most seeds gives the best mean.
    first = max((row.results for row in ended), key=len)
    if prefix == MAJORITY:  # one accuracy, whatever is measured of the rows
        most_frequent = Measure(name, f"{MAJORITY}top1").text(first)
        texts = [most_frequent if measure in ACCURACIES else "" for measure in measures]
    else:
        texts = [measure.text(first, prefix) if measure in ACCURACIES else "" for measure in measures]
    return [[name, *[""] * blank, *texts]] if any(texts) else []


def cell(measure: Measure, row: Row, rows: Sequence[Row]) -> str:
    """Format a measure of a row, for a cost with its share of end-to-end training."""
    text = measure.text(row.results)
    # In a table for people, end-to-end training shows no share of itself.
    share = None if baseline(row, rows) is row else shares(row, rows).get(measure)
    return text if share is None else f"{text} ({percent(share)})"


def percent(share: float) -> str:
    """Format a fraction in percent, with a decimal if it is small."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"


def _record(row: Row, rows: Sequence[Row], called: str | None) -> dict[str, Any]:
    record: dict[str, Any] = {"data set": row.data_set} | row.labels | row.facts
    known = shares(row, rows)
    for measure in MEASURES:
        if values := measure.values(row.results):
            record[f"{measure.title} mean"], record[f"{measure.title} sd"] = mean_and_deviation(values)
            record |= {f"{measure.title} share": known[measure]} if measure in known else {}
    record |= _differences(row, reference(row, rows, called))
    for heading, validated in at_equal_cost(rows).items():
        if found := validated[row.name]:
            title = f"validation kNN % at {heading}"
            record[f"{title} mean"], record[f"{title} sd"] = mean_and_deviation(found)
    return record | {FAILED: "; ".join(row.failures), "folders": " ".join(str(run.folder) for run in row.runs)}


def _differences(row: Row, other: Row | None) -> dict[str, Any]:
    """Return a row's paired differences to its reference, with the ends of their intervals."""
    if other is None or other is row:
        return {}
    record: dict[str, Any] = {"reference": other.name}
    for measure in ACCURACIES:
        if found := difference(row, other, measure):
            title = f"{measure.title} difference"
            record |= {title: found.mean, f"{title} seeds": found.number}
            if found.interval:
                record[f"{title} low"], record[f"{title} high"] = found.interval
    return record
