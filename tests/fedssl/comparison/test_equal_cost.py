"""Accuracy at equal cost, from the metrics of runs; numbers by hand."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from finished_runs import configuration, results

from fedssl.comparison.equal_cost import at_equal_cost, table_at_equal_cost
from fedssl.comparison.rows import Row
from fedssl.comparison.run import read_run

MakeRun = Callable[..., Path]


@pytest.fixture
def make_row(make_run: MakeRun) -> Callable[..., Row]:
    """A row of runs with the given GMACs a client and kNN of each round; three clients."""

    def make(name: str, gmacs: Sequence[float], *accuracies: Sequence[float | str]) -> Row:
        runs = []
        for seed, curve in enumerate(accuracies):
            found = results(seed, name, macs_per_client=sum(gmacs) * 1e9)
            runs.append(make_run(f"{name}{seed}", configuration(seed), found))
            with (runs[-1] / "metrics.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["cost/macs", "cost/down_bytes", "cost/up_bytes", "eval/knn_top1"])
                writer.writerows([3e9 * spent, 30, 60, knn] for spent, knn in zip(gmacs, curve, strict=True))
                writer.writerow(["", "", "", ""])  # of the final evaluation
        return Row({"scheme": name}, [read_run(folder) for folder in runs])

    return make


def test_the_last_evaluation_within_the_budget_counts(make_row: Callable[..., Row]) -> None:
    cheap = make_row("cheap", [1, 1, 2], [50, 60, 70], [52, 62, 72])  # 4 GMACs in all
    dear = make_row("dear", [1.5, 1.5, 3], [55, 66, 77], [55, "", 77])  # round 2 ends at 3, round 3 at 6 GMACs
    assert at_equal_cost([cheap, dear]) == {
        "last round": {"cheap": [70, 72], "dear": [77, 77]},
        "4.00 GMACs": {"cheap": [70, 72], "dear": [66, 55]},
        "160.00 MiB received and sent": {"cheap": [70, 72], "dear": [77, 77]},
    }
    table = table_at_equal_cost([cheap, dear])
    assert table is not None
    assert table.rows[1] == ["dear", "77.00", "60.50 ± 7.78", "77.00"]


def test_nothing_is_said_before_the_first_evaluation_and_without_costs(make_row: Callable[..., Row]) -> None:
    cheap, dear = make_row("cheap", [1], [50]), make_row("dear", [2], [60])
    table = table_at_equal_cost([cheap, dear])
    assert table is not None
    assert [line[2] for line in table.rows] == ["50.00", "-"]
    assert table_at_equal_cost([cheap]) is None
