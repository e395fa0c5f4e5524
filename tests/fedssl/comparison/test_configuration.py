"""Configurations before runs start, and in what they differ."""

import sys
from pathlib import Path

import pytest
import yaml
from tiny_runs import TINY_FEDERATION, OnlyFitted

from fedssl.__main__ import main
from fedssl.cli.command import parse
from fedssl.comparison.run import comparable, differences, holds, read_configuration
from fedssl.runs.changed_settings import flatten

ENCODER = {"encoder": {"name": "vit", "options": {"depth": 2}}}


def model(class_path: str | None = None, **arguments: object) -> dict[str, object]:
    return {"model": {"class_path": class_path, "init_args": arguments} if class_path else arguments}


def test_it_is_what_a_run_saves(tmp_path: Path) -> None:
    arguments = ["-c", "lw_fedssl.yaml", *TINY_FEDERATION, "--model.rounds=2", "--trainer.logger=false"]
    arguments += ["--seed_everything=7"]
    before = list(sys.argv)
    resolved = parse(arguments)
    assert sys.argv == before
    folder = tmp_path / "run"
    main(["fit", *arguments, f"--run_dir={folder}"], OnlyFitted)
    assert read_configuration(folder) == resolved | {"run_dir": str(folder)}
    assert holds(folder, resolved)
    assert not holds(folder, resolved | {"seed_everything": 8})


def test_a_setting_that_is_new_since_then_has_its_default(tmp_path: Path) -> None:
    resolved = parse(["-c", "lw_fedssl.yaml"])
    older = yaml.safe_load(yaml.safe_dump(resolved))
    del older["model"]["init_args"]["proximal"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(older))
    assert holds(tmp_path, resolved)
    resolved["model"]["init_args"]["proximal"] = 0.5
    assert not holds(tmp_path, resolved)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-c", "lw_fedssl.yaml", "--model.method=MoCo"], "method: unknown class 'MoCo'; allowed: "),
        (["-c", "lw_fedsl.yaml"], "no configuration 'lw_fedsl.yaml'"),
        (["-c", "lw_fedssl.yaml", "--trainer.max_epochs=3"], "trainer.max_epochs 3 differs from model.rounds 48"),
        (["-c", "lw_fedssl.yaml", "--print_config"], "--print_config trains nothing: it only prints"),
        (["--help"], "--help trains nothing: it only prints"),
    ],
)
def test_what_fit_refuses_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(arguments)


def test_where_a_run_writes_does_not_tell_it_from_another() -> None:
    settings = {"seed_everything": 1, "trainer": {"logger": False, "max_epochs": 3}, "run_dir": "a", "ckpt_path": None}
    assert comparable(settings) == {"seed_everything": 1, "trainer": {"max_epochs": 3}}
    assert settings["trainer"] == {"logger": False, "max_epochs": 3}


def test_names_are_those_of_the_command_line() -> None:
    settings = model("fedssl.FederatedSSL", scheme={"class_path": "layerwise.LayerWise", "init_args": {"blocks": 1}})
    assert flatten(settings) == {"model": "FederatedSSL", "model.scheme": "LayerWise", "model.scheme.blocks": 1}
    assert flatten(model("a.B", pace=None, **ENCODER)) == {
        "model": "B",
        "model.pace": None,
        "model.encoder": "on",
        "model.encoder.name": "vit",
        "model.encoder.options": "on",
        "model.encoder.options.depth": 2,
    }


def test_arguments_of_a_class_are_compared_among_those_that_have_it() -> None:
    layerwise = {"class_path": "x.LayerWise", "init_args": {"blocks": 1, "transfer": True}}
    settings = [
        model("m.M", scheme={"class_path": "x.EndToEnd"}),
        model("m.M", scheme=layerwise),
        model("m.M", scheme={"class_path": "x.LayerWise", "init_args": {"blocks": 2, "transfer": True}}),
    ]
    assert differences(settings) == {
        "model.scheme": ["EndToEnd", "LayerWise", "LayerWise"],
        "model.scheme.blocks": ["", "1", "2"],
    }


def test_something_that_only_one_has_is_a_difference() -> None:
    assert differences([model(calibration=None), model(calibration={"epochs": 1})]) == {
        "model.calibration": ["none", "on"]
    }
    assert differences([model(options={"depth": 2}), model(options={"depth": 2, "width": 8})]) == {
        "model.options.width": ["", "8"]
    }
    assert differences([model(a=1), model(a=1)]) == {}


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("- 1")
    with pytest.raises(ValueError, match="is not the configuration of a run"):
        read_configuration(tmp_path)
