"""Runs as their folders show them, and rows of runs; numbers by hand."""

from collections.abc import Callable
from pathlib import Path

import pytest
from finished_runs import configuration, results

from fedssl.comparison.rows import Row, baseline, group_runs, shares
from fedssl.comparison.run import Run, find_folders, read_run
from fedssl.runs.results import ACCURACIES, COSTS, Measure, mean_and_deviation, spread

MakeRun = Callable[..., Path]


def row(scheme: str, knn: float, run_settings: dict[str, object] | None = None, **labels: str) -> Row:
    run = Run(Path(scheme), configuration(), results(0, scheme, knn) | (run_settings or {}))
    return Row({"scheme": scheme} | labels, [run])


def test_mean_and_standard_deviation_of_the_sample() -> None:
    assert mean_and_deviation([90.0, 92.0, 94.0]) == (92.0, 2.0)
    assert mean_and_deviation([5.0]) == (5.0, None)
    assert spread([90.0, 92.0, 94.0]) == "92.00 ± 2.00"
    assert spread([1234.5, 1234.5]) == "1,234.50"
    assert spread([10.4], digits=0) == "10"


def test_a_number_that_a_run_lacks_is_not_averaged() -> None:
    measure = Measure("x MiB", "x", 2)
    assert measure.values([{"x": 4}, {"x": 8}]) == [2, 4]
    assert measure.values([{"x": 4}, {}]) == []
    assert measure.text([]) == ""
    assert measure.text([{"random_init_x": 3}], "random_init_") == "1.50"


def test_a_finished_run_is_read_from_its_folder(make_run: MakeRun) -> None:
    run = read_run(make_run("a", configuration(3), results(3)))
    assert (run.seed, run.failure, run.data_set) == (3, "", "digits")
    assert run.facts == {
        "scheme": "end-to-end",
        "SSL method": "SimCLR",
        "backbone": "vit, 6 blocks",
        "clients": "3 of 6 a round",
        "partition": "Dirichlet(beta=0.5)",
        "rounds": "4 of 2 local epochs",
        "commit": "abc",
    }


def test_an_unfinished_run_says_how_far_it_is(make_run: MakeRun) -> None:
    run = read_run(make_run("a", configuration()))
    assert (run.results, run.facts, run.failure) == ({}, {}, "not finished, 2 rounds done")


def test_other_data_are_told_apart() -> None:
    transfer = configuration()
    transfer["data"]["init_args"]["eval_dataset"] = "cifar10"
    own = configuration(dataset="folder")
    assert Run(Path(), transfer, {}).data_set == "digits, evaluated on cifar10"
    assert Run(Path(), own, {}).data_set == "images in data"


def test_runs_are_found_in_folders_of_runs(make_run: MakeRun, tmp_path: Path) -> None:
    first, second = make_run("set/a", configuration()), make_run("set/b", configuration())
    make_run("set/a/wandb/run", configuration())
    make_run("set/tuning/c", configuration())
    assert find_folders([second, tmp_path / "set"]) == [second, first]
    with pytest.raises(ValueError, match=r"there is no run in .*nothing"):
        find_folders([tmp_path / "nothing"])


def test_seeds_of_the_same_settings_are_one_row(six_runs: list[Run]) -> None:
    first, second = group_runs(six_runs)
    assert [run.seed for run in first.runs] == [0, 1, 2]
    assert (first.labels, second.labels) == ({"scheme": "end-to-end"}, {"scheme": "layer-wise"})
    assert second.failures == ["seed 2: no memory"]
    assert first.facts["seeds"] == "0, 1, 2"
    assert second.facts["seeds"] == "0, 1"


def test_rows_are_named_by_what_differs() -> None:
    runs = [Run(Path(), configuration(rounds=rounds), results()) for rounds in (4, 8)]
    assert [row.labels for row in group_runs(runs)] == [{"rounds": "4"}, {"rounds": "8"}]
    assert [row.labels for row in group_runs(runs[:1])] == [{"scheme": "end-to-end"}]


def test_the_same_run_twice_is_refused() -> None:
    runs = [Run(Path(name), configuration(), results()) for name in ("here", "there")]
    with pytest.raises(ValueError, match="same configuration with the same seed: here, there"):
        group_runs(runs)


def test_costs_are_set_against_end_to_end_training_with_most_in_common() -> None:
    all_rows = [
        row("end-to-end", 90, clients="6"),
        row("end-to-end", 90, clients="100"),
        row("layer-wise", 90, clients="100"),
        row("layer-wise", 90, {"method": "BYOL"}, clients="100"),
    ]
    found = [baseline(each, all_rows) for each in all_rows]
    assert found == [all_rows[0], all_rows[1], all_rows[1], None]


def test_a_ratio_is_one_of_means(six_runs: list[Run]) -> None:
    full, cheap = group_runs(six_runs)
    received, _, _, kept = COSTS
    assert shares(cheap, [full, cheap])[received] == pytest.approx(20 / 80)
    assert shares(cheap, [full, cheap])[kept] == pytest.approx(10 / 50)
    assert shares(full, [full, cheap]) == dict.fromkeys(COSTS, 1)
    assert shares(cheap, [cheap]) == {}
    assert ACCURACIES[0].values(cheap.results) == [86.0, 88.0]
