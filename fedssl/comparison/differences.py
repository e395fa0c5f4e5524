"""Paired differences between rows, seed by seed, and the headline that they allow."""

from __future__ import annotations

from collections.abc import Sequence

from fedssl.comparison.rows import Row, reference
from fedssl.comparison.statistics import Estimate, holm, paired_difference
from fedssl.runs.results import ACCURACIES, KNN, Measure
from fedssl.utils.tables import Table

NOTE = (
    "Row minus reference, seed by seed: mean over the seeds that both have, and its 95 % t interval in square "
    "brackets; none with one seed, or where all differences are equal. * stays different from zero when all intervals "
    "of the column are judged together (Holm, 5 %)."
)


def table_of_differences(rows: Sequence[Row], called: str | None = None) -> Table | None:
    """Tabulate the paired differences of all accuracies; ``None`` if no row shares a seed with its reference.

    Args:
        rows: Rows on the same data.
        called: Name or label of the reference; ``None`` for end-to-end training.
    """
    pairs = [(row, reference(row, rows, called)) for row in rows]
    others = [(row, other) for row, other in pairs if other is not None and other is not row]
    columns: dict[str, list[str]] = {}
    for measure in ACCURACIES:
        found = [difference(row, other, measure) for row, other in others]
        if any(found):
            columns[measure.title] = _cells(found, measure.digits)
    if not columns:
        return None
    cells = [
        [row.name, other.name, str(len(row.by_seed(KNN).keys() & other.by_seed(KNN).keys())), *texts]
        for (row, other), *texts in zip(others, *columns.values(), strict=True)
    ]
    return Table(["row", "reference", "shared seeds", *columns], cells, "Paired differences", NOTE, text_columns=2)


def difference(row: Row, other: Row, measure: Measure) -> Estimate | None:
    """Estimate a row's paired difference to another one."""
    return paired_difference(row.by_seed(measure), other.by_seed(measure))


def headline(rows: Sequence[Row]) -> str:
    """Say which row has the highest kNN accuracy, and call it the best only if it differs from every other row.

    Its paired differences to all other rows are judged together by Holm's procedure, at 5 %.

    Args:
        rows: Rows on the same data, at least one.
    """
    ended = sorted((row for row in rows if KNN.values(row.results)), key=lambda row: -(KNN.mean(row.results) or 0))
    if not ended:
        return f"No run on {rows[0].data_set} has ended."
    best, *others = ended
    leader = f"{best.name}, {KNN.text(best.results)} %"
    if not others:
        return f"On {best.data_set}, the only row that has ended is {leader} kNN accuracy."
    leads = [difference(best, other, KNN) for other in others]
    shown = holm([lead.p_value if lead else 1 for lead in leads])
    together = f", judged together with {len(leads) - 1} more (Holm)" if len(leads) > 1 else ""
    if all(shown):
        return (
            f"On {best.data_set}, the best row by kNN accuracy is {leader}: ahead of {others[0].name}, the next, by "
            f"{_points(leads[0])}{together}."
        )
    at = shown.index(False)
    return (
        f"On {best.data_set}, no row is shown to be the best: the highest mean kNN accuracy is that of {leader}, but "
        f"its lead over {others[at].name} can be chance, {_points(leads[at])}{together}."
    )


def _cells(found: Sequence[Estimate | None], digits: int) -> list[str]:
    """Format estimates; those that hold together get an asterisk."""
    stars = iter(holm([each.p_value for each in found if each]))
    return [each.text(digits) + (" *" if next(stars) else "") if each else "" for each in found]


def _points(lead: Estimate | None) -> str:
    if lead is None:
        return "as they share no seed"
    if lead.interval is None:
        why = "with one seed" if lead.number == 1 else f"the same with all {lead.number} seeds"
        return f"{lead.text()} points {why}, which gives no interval"
    return f"{lead.text()} points over {lead.number} seeds"
