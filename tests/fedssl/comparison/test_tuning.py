"""Settings chosen on validation images: the grid, the choice and its table. The runs are stand-ins."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from finished_runs import configuration, results

from fedssl.comparison import command, runner
from fedssl.comparison.grid import Grid
from fedssl.comparison.rows import Row
from fedssl.comparison.table import make_tables
from fedssl.comparison.trials import Trial, best, table_of_trials
from fedssl.comparison.tuning import check_validated

AXES = {"scheme": {"end-to-end": "-c fedssl.yaml", "layer-wise": "-c lw_fedssl.yaml"}}
RATES = {"learning rate": {"low": "--model.optimizer.lr=1e-3", "high": "--model.optimizer.lr=1e-2"}}
TUNED: dict[str, Any] = {"axes": AXES, "seeds": [0, 1], "tune": RATES, "tuning_seeds": [7]}


def settings(data: Mapping[str, Any] = {}, trainer: Mapping[str, Any] = {}) -> dict[str, Any]:
    """A configuration whose runs are validated every other round, with changes."""
    found = configuration()
    found["data"]["init_args"] |= {"eval_train_split": "train", "eval_test_split": "test", **data}
    found["trainer"] |= {"check_val_every_n_epoch": 2, "limit_val_batches": None, **trainer}
    return found


# Leaves its arguments, and a validation accuracy that is best for end-to-end training at the low learning rate, for
# layer-wise training at the high one; the test accuracies say the opposite.
STAND_IN = f"""
import json, sys
from pathlib import Path
arguments = dict(each.partition("=")[::2] for each in sys.argv[1:])
folder = Path(arguments["--run_dir"])
end_to_end, low = "fedssl.yaml" in sys.argv, arguments["--model.optimizer.lr"] == "1e-3"
if "--fail" in arguments and not low:
    sys.exit("error: diverged")
knn = 80 if end_to_end == low else 60
(folder / "metrics.csv").write_text(f"round,eval/knn_top1\\n0,99\\n1,{{knn}}\\n2,\\n")
seed, own = int(arguments["--seed_everything"]), sys.argv[1:-3]
config = json.loads({json.dumps(settings())!r}) | {{"arguments": own, "seed_everything": seed}}
found = {results()!r} | {{"seed": seed, "knn_top1": 100.0 - knn, "rounds_done": 4}}
(folder / "config.yaml").write_text(json.dumps(config))
(folder / "arguments.json").write_text(json.dumps(own))
(folder / "results.json").write_text(json.dumps(found | {{"finished": True}}))
"""


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Configurations that differ in the arguments only, so that nothing has to be parsed."""
    monkeypatch.setattr("fedssl.comparison.grid.parse", lambda arguments: settings() | {"arguments": arguments})
    monkeypatch.setattr(runner, "COMMAND", (sys.executable, "-c", STAND_IN))


def rows_of(folder: Path, **changes: Any) -> list[Row]:
    grid = {"settings": "", "tuning_settings": "", **TUNED, **changes}
    return command.run_grid(Grid(**grid), folder, jobs=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tuning_seeds": []}, "tune and tuning_seeds belong together"),
        ({"tune": {}, "tuning_settings": "--x=1"}, "tune and tuning_seeds belong together"),
        ({"tuning_seeds": [1, 2]}, r"tuning_seeds must differ from seeds, got \{1\} in both"),
        ({"tune": {"scheme": {"a": "--x=1"}}}, r"different names, got \{'scheme'\} in both"),
        ({"tune": {"learning rate": {}}}, "at least one choice on each axis"),
        ({"tune": {"learning rate": {"a": "--run_dir=x"}}}, "--run_dir=x: the comparison itself decides"),
    ],
)
def test_what_makes_no_tuning_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grid(**TUNED | changes)


@pytest.mark.parametrize(
    ("data", "trainer", "message"),
    [
        ({"eval_test_split": "train"}, {}, "are both 'train'"),
        ({"eval_test_split": None}, {}, "a: tune chooses by the kNN on validation images"),
        ({}, {"check_val_every_n_epoch": 5}, "must be at most 4, got 5"),
        ({}, {"limit_val_batches": 0}, "--trainer.limit_val_batches not 0"),
    ],
)
def test_runs_without_validation_cannot_be_tuned(data: dict[str, Any], trainer: dict[str, Any], message: str) -> None:
    check_validated("a", settings())
    with pytest.raises(ValueError, match=message):
        check_validated("a", settings(data, trainer))


def test_the_best_choice_is_the_first_of_equal_means() -> None:
    trials = [Trial({"rate": "a"}, []), Trial({"rate": "b"}, [70, 80]), Trial({"rate": "c"}, [75, 75])]
    assert best(trials) is trials[1]
    assert best(trials[:1]) is None
    table = table_of_trials({"end-to-end": [Trial({"rate": "a"}, [], "seed 7: diverged"), trials[1]]})
    assert table is not None
    assert table.header == ["row", "rate", "", "validation kNN %"]
    assert table.rows == [
        ["end-to-end", "a", "", "seed 7: diverged"],
        ["end-to-end", "b", "chosen", "75.00 ± 7.07"],
    ]


@pytest.mark.usefixtures("configured")
def test_each_row_runs_with_the_choice_that_validation_prefers(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, tuning_settings="--model.rounds=2")
    assert [row.facts["learning rate"] for row in rows] == ["low", "high"]
    assert [run.seed for row in rows for run in row.runs if run.results] == [0, 1, 0, 1]
    arguments = json.loads((tmp_path / "layer_wise-seed1" / "arguments.json").read_text())
    assert arguments == ["-c", "lw_fedssl.yaml", "--model.optimizer.lr=1e-2"]
    tried = json.loads((tmp_path / "tuning" / "layer_wise__low-seed7" / "arguments.json").read_text())
    assert tried[2:] == ["--model.optimizer.lr=1e-3", "--model.rounds=2"]
    [table] = make_tables(rows)
    assert [each.title for each in table.further][-1] == "Tuning"
    assert [line[table.header.index("learning rate")] for line in table.rows][-2:] == ["low", "high"]


@pytest.mark.usefixtures("configured")
def test_a_tuning_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = rows_of(tmp_path)
    monkeypatch.setattr(runner.subprocess, "Popen", None)
    assert [row.trials for row in rows_of(tmp_path)] == [row.trials for row in first]


@pytest.mark.usefixtures("configured")
def test_a_choice_that_failed_is_out_and_a_row_without_choice_is_not_run(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, settings="--fail")
    assert [row.facts["learning rate"] for row in rows] == ["low", "low"]
    assert rows[0].trials[1] == Trial({"learning rate": "high"}, [], "seed 7: diverged")
    lost = rows_of(tmp_path / "lost", settings="--fail", tune={"rate": {"high": "--model.optimizer.lr=1e-2"}})
    assert lost[0].failures == [f"seed {seed}: none of its tuning runs has ended" for seed in (0, 1)]
    assert not (tmp_path / "lost" / "end_to_end-seed0").exists()
