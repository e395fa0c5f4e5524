"""The page of a comparison; numbers by hand."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from finished_runs import MIB, configuration, results
from webpage import check_page

from fedssl.comparison.comparison_report import comparison_page, lightest, panels
from fedssl.comparison.curves import Band, accuracy_over_rounds, band, cost_shares, layer_similarity
from fedssl.comparison.rows import Row, group_runs
from fedssl.comparison.run import Run, read_run
from fedssl.comparison.table import make_tables
from fedssl.runs.results import COSTS
from linear_eval import EvaluationDetails

MakeRun = Callable[..., Path]


def curve(*values: list[float]) -> tuple[np.ndarray, np.ndarray]:
    rounds, measured = (np.array(each, dtype=float) for each in values)
    return rounds, measured


def page_of(rows: list[Row], command: str = "") -> str:
    return comparison_page(make_tables(rows), rows, command)


def label(*rows: tuple[str, ...]) -> list[Row]:
    keys = ("scheme", "method", "clients")
    return [Row(dict(zip(keys, texts, strict=False)), []) for texts in rows]


@pytest.fixture
def rows(make_run: MakeRun) -> list[Row]:
    """Two schemes, two seeds, with accuracies at rounds 2 and 4."""
    folders = []
    for seed in (0, 1):
        for scheme, name, knn in (("EndToEnd", "end-to-end", 90.0), ("LayerWise", "layer-wise", 86.0)):
            cost = {"peak_activation_bytes": 10 * MIB} if name == "layer-wise" else {}
            found = results(seed, name, knn + seed, **cost)
            folders.append(make_run(f"{name}-{seed}", configuration(seed, scheme), found))
            with (folders[-1] / "metrics.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, ["epoch", "round", "stage", "eval/knn_top1"])
                writer.writeheader()
                writer.writerows({"epoch": at, "round": at + 1, "stage": 0, "eval/knn_top1": knn + at} for at in (1, 3))
    return group_runs([read_run(folder) for folder in folders])


def test_a_band_is_mean_and_deviation_where_all_runs_measured() -> None:
    found = band([curve([1, 2, 4], [10, 20, 40]), curve([2, 3, 4], [22, 30, 40])])
    assert [each.tolist() for each in vars(found).values()] == [[2.0, 4.0], [21.0, 40.0], [pytest.approx(2**0.5), 0.0]]
    assert [each.tolist() for each in vars(band([curve([1], [5])])).values()] == [[1.0], [5.0], [0.0]]


def test_a_figure_holds_rows_that_differ_in_the_first_label() -> None:
    grid = label(("e", "SimCLR"), ("l", "SimCLR"), ("e", "BYOL"), ("l", "BYOL"))
    assert panels(grid) == {
        "method SimCLR": {"e": grid[0], "l": grid[1]},
        "method BYOL": {"e": grid[2], "l": grid[3]},
    }
    same = label(("e", "SimCLR", "6"), ("e", "SimCLR", "100"))
    assert panels(same) == {"": {"6": same[0], "100": same[1]}}
    scattered = label(("e", "SimCLR"), ("l", "BYOL"))
    assert panels(scattered) == {"": {"e, SimCLR": scattered[0], "l, BYOL": scattered[1]}}


def test_the_lightest_row_is_named_with_its_cost(rows: list[Row]) -> None:
    assert lightest(rows, "digits") == (
        "layer-wise keeps least in memory: 86.50 ± 0.71 % with 20 % of the activations and 100 % of the operations of "
        "end-to-end training."
    )
    assert lightest(rows[:1], "digits") == lightest(rows, "cifar10") == ""


def test_the_page_has_all_sections_and_names_nothing_outside(rows: list[Row]) -> None:
    page = page_of(rows, "python train.py compare <x>")
    sections = ["Results", "Accuracy over rounds", "Accuracy against cost", "Cost", "Settings", "Runs"]
    assert [heading for heading in check_page(page).headings if heading in sections] == sections
    assert "python train.py compare &lt;x&gt;" in page


def test_failures_and_other_data_sets_are_apart_on_the_page(rows: list[Row]) -> None:
    failed = Row({"scheme": "a"}, [Run(Path("a"), configuration(dataset="cifar10"), {}, "no memory")])
    page = page_of([*rows, failed])
    assert "Results on digits" in page
    assert "Not finished on cifar10" in page
    assert "a, seed 0: no memory" in page


def keep_layers(run: Run, names: list[str], outputs: list[np.ndarray]) -> None:
    nothing = np.zeros(0)
    details = EvaluationDetails(nothing, nothing, nothing, nothing, np.array(names), {}, outputs)
    np.savez(run.folder / "details.npz", **details.as_arrays())


def test_layers_are_compared_only_if_runs_of_the_same_seed_kept_them(rows: list[Row]) -> None:
    full, cheap = rows
    assert layer_similarity(full, cheap) is None
    rng = np.random.default_rng(0)
    outputs = rng.standard_normal((20, 3)), rng.standard_normal((20, 4))
    keep_layers(full.runs[0], ["stem", "block 1"], list(outputs))
    keep_layers(cheap.runs[1], ["stem"], [outputs[0]])
    assert layer_similarity(full, cheap) is None
    keep_layers(cheap.runs[0], ["stem"], [2 * outputs[0]])
    found = layer_similarity(full, cheap)
    assert found is not None
    values, own, other = found
    assert (values.shape, own, other) == ((2, 1), ["stem", "1"], ["stem"])
    assert values[0, 0] == pytest.approx(1)
    assert values[1, 0] < 0.5
    assert "layer-wise and end-to-end" in page_of(rows)


def test_lines_and_bars_show_the_numbers() -> None:
    figure = accuracy_over_rounds({"a": Band(*np.array([[1, 2], [50, 60], [1, 2]]))}, "round")
    [axes] = figure.axes
    assert axes.lines[0].get_ydata().tolist() == [50, 60]
    vertices = axes.collections[0].get_paths()[0].vertices
    assert (vertices[:, 1].min(), vertices[:, 1].max()) == (49, 62)
    [axes] = cost_shares({"a": [1, 1, 1, 1], "b": [0.5, 0.4, 0.3, 0.2]}, COSTS).axes
    assert np.allclose([bar.get_width() for bar in axes.patches[4:]], [50, 40, 30, 20])
    assert [text.get_text() for text in axes.get_yticklabels()] == ["received", "sent", "GMACs", "kept"]
