"""Accuracy at equal cost: the validation kNN of each row when it had spent what the cheapest row spends in all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedssl.comparison.rows import Row
from fedssl.comparison.run import Run
from fedssl.runs.results import MACS, TRAFFIC, Measure, spread
from fedssl.runs.run_folder import METRICS, read_metrics
from fedssl.utils.tables import Table

VALIDATION = "eval/knn_top1"
NOTE = (
    "Validation kNN %, mean ± standard deviation over seeds: of the last evaluation of the run, and of the last one at "
    "which a client had spent no more than the budget, which is what the cheapest row spends in all. Nothing is "
    "interpolated; - where a seed had no evaluation by then."
)


@dataclass(frozen=True)
class Cost:
    """Cost that grows from round to round.

    Args:
        unit: Unit in which it is shown.
        measures: Totals of a client, added up.
        metrics: Columns of ``metrics.csv`` with what all clients spent in a round, added up.
    """

    unit: str
    measures: Sequence[Measure]
    metrics: Sequence[str]

    def total(self, run: Run) -> float | None:
        """Return what a client spent in the whole run; ``None`` without a federation."""
        values = [measure.values([run.results]) for measure in self.measures]
        return sum(each[0] for each in values) if all(values) else None


SPENT = (
    Cost("GMACs", (MACS,), ("cost/macs",)),
    Cost("MiB received and sent", TRAFFIC, ("cost/down_bytes", "cost/up_bytes")),
)


def validation(run: Run) -> float | None:
    """Return the validation kNN in percent of a run's last evaluation during training; ``None`` without one."""
    found = [float(row[VALIDATION]) for row in read_metrics(run.folder / METRICS) if row.get(VALIDATION)]
    return found[-1] if found else None


def validation_within(run: Run, cost: Cost, budget: float) -> float | None:
    """Return the validation kNN in percent of the last evaluation within a budget; ``None`` if there is none."""
    found = [knn for spent, knn in _evaluations(run, cost) if spent <= budget * (1 + 1e-9)]
    return found[-1] if found else None


def budgets(rows: Sequence[Row]) -> dict[Cost, float]:
    """Return what the cheapest row spends, by cost; its most expensive seed, so that all its seeds stay within."""
    found: dict[Cost, float] = {}
    for cost in SPENT:
        totals = [[cost.total(run) for run in row.runs if run.results] for row in rows]
        known = [max(filter(None, each)) for each in totals if each and all(each)]
        found |= {cost: min(known)} if len(known) > 1 else {}
    return found


def at_equal_cost(rows: Sequence[Row]) -> dict[str, dict[str, list[float]]]:
    """Return the validation kNN of each row's seeds by heading and name of the row; empty where a seed has none.

    Args:
        rows: Rows on the same data.
    """
    found = {"last round": {row.name: _known([validation(run) for run in row.runs if run.results]) for row in rows}}
    for cost, budget in budgets(rows).items():
        found[f"{budget:,.2f} {cost.unit}"] = {
            row.name: _known([validation_within(run, cost, budget) for run in row.runs if run.results]) for row in rows
        }
    return found


def table_at_equal_cost(rows: Sequence[Row]) -> Table | None:
    """Tabulate the accuracies at equal cost; ``None`` if fewer than two rows have costs and evaluations."""
    found = at_equal_cost(rows)
    if len(found) == 1 or sum(map(bool, found["last round"].values())) < 2:
        return None
    names = [row.name for row in rows if row.results]
    cells = [[name, *(spread(values[name]) if values[name] else "-" for values in found.values())] for name in names]
    return Table(["row", *found], cells, "At equal cost", NOTE)


def _evaluations(run: Run, cost: Cost) -> Iterator[tuple[float, float]]:
    """Iterate over a client's cost so far and kNN at each evaluation.

    The rounds of ``metrics.csv`` hold sums over all clients; they are scaled so that they add up to a client's total.
    """
    total, rows = cost.total(run), read_metrics(run.folder / METRICS)
    spent = [sum(float(row.get(metric) or 0) for metric in cost.metrics) for row in rows]
    if total is None or not sum(spent):
        return
    for at, row in enumerate(rows):
        if row.get(VALIDATION):
            yield sum(spent[: at + 1]) / sum(spent) * total, float(row[VALIDATION])


def _known(values: Sequence[float | None]) -> list[float]:
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else []
