"""Figures of rounds and clients, and the numbers behind them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedssl.runs.report import figures
from fedssl.runs.report.figures import MOST_CLIENTS, Line, distribution, each_client, shown_clients
from fedssl.runs.report.page import Picture
from fedssl.runs.report.record import ClientDetails, Curve, RunRecord
from fedssl.runs.report.representation import class_accuracies
from fedssl.runs.report.run_report import accuracy_over_cost
from fedssl.runs.report.summary import fit, gmacs, stage_sums
from fedssl.runs.report.theme import as_png, as_svg, heat_map

ROWS = """epoch,round,stage,client/participants,client/failed,client/dropped,client/loss,cost/down_bytes,cost/up_bytes,\
cost/macs,cost/peak_activation_bytes,eval/knn_top1
0,0,0,2,0,0,4.0,4194304,2097152,6e9,1048576,
1,1,0,1,1,0,3.0,4194304,1048576,4e9,2097152,50
2,2,1,0,0,2,,0,0,0,0,
3,3,1,2,0,0,2.0,8388608,2097152,8e9,1048576,60
4,,,,,,,,,,,70
"""


def listed(curve: Curve) -> tuple[list[float], list[float]]:
    return curve[0].tolist(), curve[1].tolist()


def record(folder: Path, settings: dict[str, Any] | None = None, **results: Any) -> RunRecord:
    (folder / "metrics.csv").write_text(ROWS)
    (folder / "results.json").write_text("{}")
    (folder / "config.yaml").write_text("{}")
    read = RunRecord.read(folder)
    config = {"model": {"init_args": settings or {}}}
    return RunRecord(folder, config, {"clients": 2} | results, read.rows, None, None)


def test_curves_and_stages_leave_out_the_final_evaluation(tmp_path: Path) -> None:
    run = record(tmp_path)
    assert listed(run.curve("eval/knn_top1")) == ([2.0, 4.0], [50.0, 60.0])
    assert listed(run.curve("client/loss")) == ([1.0, 2.0, 4.0], [4.0, 3.0, 2.0])
    assert listed(run.curve("absent")) == ([], [])
    assert run.stages() == [2, 4]
    assert run.unit == "round"


def test_means_are_over_those_who_took_part(tmp_path: Path) -> None:
    macs = figures.mean_of_participants(record(tmp_path), "cost/macs", scale=1e9)
    assert listed(macs) == ([1.0, 2.0, 4.0], [3.0, 2.0, 4.0])  # a failed client computed too, and nobody did in round 3
    both = figures.mean_of_participants(record(tmp_path), "cost/down_bytes", "cost/up_bytes", scale=2**20)
    assert listed(both) == ([1.0, 2.0, 4.0], [3.0, 2.5, 5.0])
    assert listed(figures.so_far(both)) == ([1.0, 2.0, 4.0], [3.0, 5.5, 10.5])


def test_a_curve_over_another_one() -> None:
    paid, knn = np.array([[1.0, 2.0, 4.0], [3.0, 5.5, 10.5]]), np.array([[2.0, 3.0, 4.0], [50.0, 55.0, 60.0]])
    assert listed(figures.against((paid[0], paid[1]), (knn[0], knn[1]))) == ([5.5, 10.5], [50.0, 60.0])


@pytest.mark.parametrize(("seconds", "title"), [("0.0", "Accuracy over traffic"), ("9.5", "Accuracy over time")])
def test_time_is_shown_where_devices_have_a_speed(seconds: str, title: str, tmp_path: Path) -> None:
    run = record(tmp_path)
    timed = replace(run, rows=[row | {"time/simulated_seconds": seconds} for row in run.rows])
    (picture,) = accuracy_over_cost(timed, figures.so_far(run.curve("cost/up_bytes")))
    assert isinstance(picture, Picture)
    assert picture.title == title


def test_sums_of_stages(tmp_path: Path) -> None:
    first, second = stage_sums(record(tmp_path))
    assert first == {
        "first_round": 1, "last_round": 2, "down_mib": 8.0, "up_mib": 3.0, "gmacs": 10.0, "peak_mib": 2.0, "loss": 3.0
    }  # fmt: skip
    assert (second["down_mib"], second["gmacs"], second["loss"]) == (8.0, 8.0, 2.0)


def test_accuracy_of_a_class_without_images_is_unknown() -> None:
    accuracies = class_accuracies(np.array([[3, 1, 0], [0, 0, 0], [1, 1, 2]]))
    np.testing.assert_array_equal(accuracies, [75.0, np.nan, 50.0])


@pytest.mark.parametrize(
    ("settings", "eligibility", "said"),
    [
        ({}, None, "No memory limit was set."),
        ({"memory_budget": "30MiB"}, None, "Its local steps were planned for less memory (memory_budget: 30MiB)."),
        (
            {"memory_budget": None},
            [{"need_bytes": 2**20, "eligible": 5, "clients": 6}, {"need_bytes": 2**21, "eligible": 3, "clients": 6}],
            "Every stage fitted at least 3 of 6 devices; the largest needs at least 2 MiB.",
        ),
        (
            {"memory_budget": None},
            [{"need_bytes": 2**20, "eligible": 6, "clients": 6}],
            "Every stage fitted all 6 devices; the largest needs at least 1 MiB.",
        ),
    ],
)
def test_whether_it_fitted(
    settings: dict[str, Any], eligibility: list[dict[str, int]] | None, said: str, tmp_path: Path
) -> None:
    results = {"eligibility": eligibility} if eligibility else {}
    assert fit(record(tmp_path, settings, **results)) == said


@pytest.mark.parametrize("loss", ["nan", "inf", "-inf", "1e308", "-1e308"])
def test_losses_that_are_no_numbers_are_left_out(loss: str, tmp_path: Path) -> None:
    run = record(tmp_path)
    run = replace(run, rows=[run.rows[0] | {"client/loss": loss}, *run.rows[1:]])
    assert run.curve("client/loss")[1].tolist() == [3.0, 2.0]
    alone = replace(run, rows=run.rows[:1])
    for each in (run, alone):
        as_svg(figures.lines([Line(each.curve("client/loss"))], "round", "loss", each.stages()), "", "x")
    assert [sums.get("loss") for sums in stage_sums(alone)] == [None]


def test_a_report_does_without_what_clients_gave(tmp_path: Path) -> None:
    run = record(tmp_path)
    kept = ("epoch", "round", "stage", "cost/down_bytes", "eval/knn_top1")
    bare = replace(run, rows=[{key: row[key] for key in kept} for row in run.rows])
    assert stage_sums(bare)[0]["peak_mib"] == 0
    assert listed(figures.mean_of_participants(bare, "cost/down_bytes", scale=1)) == ([], [])
    as_svg(figures.participation(bare), "", "x")


def test_operations_have_units() -> None:
    assert [gmacs(macs) for macs in (1.5e6, 2.345e9, 237.4e9, 1.58e15)] == [
        "0.0015 GMACs", "2.35 GMACs", "237 GMACs", "1,580,000 GMACs"
    ]  # fmt: skip


def test_figures_of_odd_sizes_can_be_drawn(tmp_path: Path) -> None:
    figures.lines([Line((np.ones(1), np.ones(1)))], "round", "loss", [1])
    figures.lines([Line((np.arange(2), np.zeros(2)), str(each)) for each in range(8)], "round", "loss")
    figures.participation(record(tmp_path))
    heat_map(np.zeros((1, 1)), ["a"], ["b"], ("row", "column"))
    names = [f"class {number}" for number in range(100)]
    heat_map(np.ones((300, 100)), [str(row) for row in range(300)], names, ("row", "column"))


def clients(number: int) -> ClientDetails:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 9, (number, 3))
    return ClientDetails(
        np.asarray(["a", "b", "c"]),
        images,
        *(rng.integers(0, 5, number) for _ in range(5)),
        np.arange(number).astype(str),
    )


def test_few_clients_have_a_bar_each() -> None:
    (axes,) = each_client(np.arange(MOST_CLIENTS), "rounds").axes
    assert len(axes.patches) == MOST_CLIENTS


@pytest.mark.parametrize("values", [np.arange(10_000) % 7, np.linspace(0, 1, 10_000), np.zeros(10_000)])
def test_many_clients_are_counted_together(values: np.ndarray) -> None:
    figure = each_client(values, "rounds")
    (axes,) = figure.axes
    assert len(axes.patches) <= 41
    assert sum(patch.get_height() for patch in axes.patches) == 10_000
    assert len(as_svg(figure, "", "x")) < 50_000


def test_of_many_clients_an_even_part_is_shown() -> None:
    assert shown_clients(3).tolist() == [0, 1, 2]
    shown = shown_clients(10_000)
    assert (len(shown), shown[0], shown[-1]) == (MOST_CLIENTS, 0, 9_999)
    assert set(np.diff(shown)) <= {50, 51}
    many = clients(10_000)
    assert as_svg(distribution(many), "", "x").count("</text>") < 60
    assert len(as_svg(distribution(many), "", "x")) < 100_000
    assert as_png(distribution(replace(many, images=many.images[:1])))


@pytest.mark.parametrize("name", ["$", "a$b", "$x$", r"$\frac$", "$$", "x_{$}$y$", "_", "back\\slash", "%", "{", "^"])
def test_a_class_may_have_any_name(name: str) -> None:
    figure = heat_map(np.ones((2, 2)), [name, "a"], ["b", name], (name, "column"))
    assert as_png(figure)
    assert ">" + name.replace("&", "&amp;") + "<" in as_svg(figure, name, "x")
