"""Axes of choices and the runs that they make."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import ROOT

from fedssl.cli.command import parse
from fedssl.comparison.grid import Grid, GridRun, place, plan_grid, slug

AXES: Any = {
    "scheme": {"end-to-end": "-c fedssl.yaml", "layer-wise": "-c lw_fedssl.yaml"},
    "options": {"all": None, "half": "--model.participation=0.5 '--data.partition=IID'"},
}


def test_rows_are_all_combinations_in_order() -> None:
    rows = Grid(AXES, [0], "--model.rounds=24").rows()
    assert [labels for labels, _ in rows] == [
        {"scheme": "end-to-end", "options": "all"},
        {"scheme": "end-to-end", "options": "half"},
        {"scheme": "layer-wise", "options": "all"},
        {"scheme": "layer-wise", "options": "half"},
    ]
    assert rows[0][1] == ["-c", "fedssl.yaml", "--model.rounds=24"]
    assert rows[3][1] == [
        "-c",
        "lw_fedssl.yaml",
        "--model.participation=0.5",
        "--data.partition=IID",
        "--model.rounds=24",
    ]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"axes": {}}, "at least one choice"),
        ({"axes": {"scheme": {}}}, "at least one choice"),
        ({"axes": AXES, "seeds": []}, r"seeds must be different numbers of at least 0, got \[\]"),
        ({"axes": AXES, "seeds": [1, 1]}, r"got \[1, 1\]"),
        ({"axes": AXES, "seeds": [-1]}, r"got \[-1\]"),
        ({"axes": AXES, "settings": "--run_dir=x"}, "--run_dir=x: the comparison itself decides"),
        ({"axes": {"a": {"b": "--seed_everything 3"}}}, "--seed_everything: the comparison itself decides"),
    ],
)
def test_what_makes_no_comparison_is_refused(grid: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grid(**grid)


def test_a_run_has_a_folder_a_seed_and_a_configuration(tmp_path: Path) -> None:
    grid = Grid({"scheme": {"layer-wise": "-c lw_fedssl.yaml"}, "method": {"BYOL": "--model.method=BYOL"}}, [3, 4])
    [[first, second]] = plan_grid(grid, tmp_path)
    assert first.folder == tmp_path / "layer_wise__BYOL-seed3"
    assert second.folder == tmp_path / "layer_wise__BYOL-seed4"
    assert second.configuration["seed_everything"] == 4
    assert second.configuration["model"]["init_args"]["method"]["class_path"] == "ssl_methods.BYOL"
    assert not first.done


def test_the_row_that_is_refused_is_named(tmp_path: Path) -> None:
    grid = Grid({"scheme": {"good": "-c lw_fedssl.yaml", "bad": "-c lw_fedssl.yaml --model.schem=1"}})
    with pytest.raises(ValueError, match=r"bad: .*schem"):
        plan_grid(grid, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_same_run_twice_is_refused(tmp_path: Path) -> None:
    grid = Grid({"rounds": {"default": "-c lw_fedssl.yaml", "48": "-c lw_fedssl.yaml --model.rounds=48"}})
    with pytest.raises(ValueError, match="'default' and '48' are the same run"):
        plan_grid(grid, tmp_path)


@pytest.mark.slow
def test_a_folder_with_another_configuration_is_left_alone(tmp_path: Path) -> None:
    arguments = ["-c", "lw_fedssl.yaml"]
    wanted = tmp_path / "a-seed0"
    wanted.mkdir()
    (wanted / "config.yaml").write_text(yaml.safe_dump(parse(arguments)))
    (wanted / "results.json").write_text(json.dumps({}))
    [other] = place([GridRun("a", [*arguments, "--model.rounds=24"], 0, wanted)])
    assert other.folder == tmp_path / "a-seed0-2"
    assert not other.done
    (wanted / "config.yaml").write_text(yaml.safe_dump(parse(arguments) | {"seed_everything": 0}))
    [same] = place([GridRun("a", arguments, 0, wanted)])
    assert same.folder == wanted
    assert same.done


def test_names_become_folders() -> None:
    assert slug("layer-wise, depth dropout (3 of 6)") == "layer_wise__depth_dropout__3_of_6_"


@pytest.mark.slow
def test_the_comparison_that_comes_with_the_project_can_be_run(tmp_path: Path) -> None:
    rows = plan_grid(Grid(**yaml.safe_load((ROOT / "configs" / "comparison.yaml").read_text())), tmp_path)
    assert [len(row) for row in rows] == [3] * 6
