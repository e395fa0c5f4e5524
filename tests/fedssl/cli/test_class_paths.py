"""What a configuration can name, import and call."""

import re
import sys
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import ROOT, TINY_FEDERATION, Unstarted

from fedssl.__main__ import main
from fedssl.cli.command import parse
from fedssl.cli.names import DEPENDENCIES, OWN, own_modules
from fedssl.flower.recipe import read_recipe

PACKAGES = {"pytorch-lightning": "pytorch_lightning", "scikit-learn": "sklearn"}
MARK = "import pathlib; pathlib.Path(__file__).with_name('imported').touch()\n"


def accept(*arguments: str) -> Any:
    """Makes trainer, model and data, and returns the model."""
    accepted: list[Any] = []
    main(["fit", "-c", "lw_fedssl.yaml", *TINY_FEDERATION, "--trainer.logger=false", *arguments],
         partial(Unstarted, accepted=accepted))  # fmt: skip
    return accepted[0]


def refused(*arguments: str) -> str:
    """The message."""
    with pytest.raises(SystemExit) as stopped:
        accept(*arguments)
    return str(stopped.value.code)


def nested(key: str, value: Any) -> dict[str, Any]:
    """Settings with one value at a dotted key."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


KEYS = [
    "model",
    "data",
    "model.init_args.server_optimizer",
    "model.init_args.optimizer",
    "model.init_args.method",
    "model.init_args.augment",
    "model.init_args.encoder",
    "model.init_args.encoder.options.norm_layer",
    "model.init_args.calibration.optimizer",
    "data.init_args.partition",
    "trainer.callbacks",
    "trainer.logger",
    "trainer.plugins",
    "trainer.strategy",
    "trainer.profiler",
]
CALLS = {"os.system": "command", "torch.hub.os.system": "command", "numpy.fromfile": "file"}


@pytest.mark.parametrize(
    ("key", "call"), [*((key, "os.system") for key in KEYS), *((KEYS[2], call) for call in list(CALLS)[1:])]
)
def test_a_function_is_never_called(key: str, call: str, tmp_path: Path) -> None:
    called = tmp_path / "called"
    evil = {"class_path": call, "init_args": {CALLS[call]: f"touch {called}"}}
    (tmp_path / "evil.yaml").write_text(yaml.safe_dump(nested(key, evil)))
    said = refused("-c", str(tmp_path / "evil.yaml"))
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 2
    assert not called.exists()


@pytest.mark.parametrize("setting", ["augment", "server_optimizer", "method", "scheme", "selector"])
def test_a_module_of_another_package_is_not_even_imported(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere.py").write_text(MARK + "class Thing: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    said = refused(f"--model.{setting}=elsewhere.Thing")
    assert "elsewhere.Thing is not allowed: a configuration can name classes of fedssl, " in said
    assert not (tmp_path / "imported").exists()
    assert "is not allowed" in refused(f"--model.{setting}=tabnanny.NannyNag")
    assert "tabnanny" not in sys.modules


def test_only_what_a_setting_expects_is_made() -> None:
    assert "server_optimizer: torch.nn.Linear is no Optimizer" in refused("--model.server_optimizer=torch.nn.Linear")
    assert "server_optimizer: torch.load is no Optimizer" in refused("--model.server_optimizer=torch.load")
    said = refused("--model.server_optimizer={class_path: torch.load, init_args: {f: x}}")
    assert "class_path torch.load is a function: it must name a class" in said
    assert "is no TwoViews; allowed: " in refused("--model.augment=lightly.transforms.SimCLRTransform")


@pytest.mark.parametrize("packaged", [False, True])
def test_a_class_in_the_working_folder_is_as_easy_as_ever(
    packaged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"own_{packaged}_selection"
    path = tmp_path / module / "inner.py" if packaged else tmp_path / f"{module}.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text("from fedssl import RandomSelector\nclass Mine(RandomSelector): ...\n")
    config = Path("configs/lw_fedssl.yaml").absolute()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    model = accept("-c", str(config), f"--model.selector={module}{'.inner' if packaged else ''}.Mine")
    assert type(model.settings.cohort.selector).__name__ == "Mine"


def test_a_file_with_the_name_of_a_known_module_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("os", "subprocess", "flask_like"):
        (tmp_path / f"{name}.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    assert {"os", "subprocess"}.isdisjoint(own_modules())
    assert "flask_like" in own_modules()


def test_installed_packages_are_not_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "somebodys.py").touch()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    assert "somebodys" not in own_modules()


def test_other_ways_into_a_configuration_are_guarded_too(tmp_path: Path) -> None:
    called = tmp_path / "called"
    evil = {"class_path": "os.system", "init_args": {"command": f"touch {called}"}}
    file = tmp_path / "evil.yaml"
    file.write_text(yaml.safe_dump({"model": {"init_args": {"server_optimizer": evil}}}))
    with pytest.raises(ValueError, match=r"os\.system is not allowed"):
        parse(["-c", "lw_fedssl.yaml", "-c", str(file)])
    recipe = {key: parse(["-c", "lw_fedssl.yaml"])[key] for key in ("model", "data")} | {"precision": None}
    recipe["model"]["init_args"]["optimizer"] = evil
    with pytest.raises((SystemExit, Exception), match=r"os\.system"):
        read_recipe(yaml.safe_dump(recipe))
    assert not called.exists()


def test_the_dependencies_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {re.split(r"[\[<>=!]", text)[0] for text in project["dependencies"]}
    packages = {PACKAGES.get(name, name) for name in named} - {"jsonargparse"}
    assert set(DEPENDENCIES) == packages | {"lightning_fabric"}
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"benchmarks"} == set(OWN)
