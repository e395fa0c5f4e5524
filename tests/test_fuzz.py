"""A hundred configurations that make no sense: every one is refused in a line or accepted, and none is a traceback."""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import Unstarted

from benchmarks.reliability.cases import BASES, hostile, nonsense
from fedssl.__main__ import main
from fedssl.cli.command import parse
from fedssl.cli.lightning import FedSSLCLI

BASE = "lw_fedssl"


class OnlyFit(Unstarted):
    """Builds one parser instead of four."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """``fit`` only."""
        return {"fit": FedSSLCLI.subcommands()["fit"]}


def said_of(file: Path) -> str:
    """What is said of a configuration; nothing if it is accepted."""
    try:
        main(["fit", "-c", str(file), f"--run_dir={file.parent / 'run'}"], OnlyFit)
    except SystemExit as stop:
        return str(stop.code)
    return ""


def cases() -> Iterator[tuple[str, dict[str, Any], str]]:
    whole = {BASE: parse(["-c", f"{BASE}.yaml", *BASES[BASE], "--trainer.logger=false"])}
    yield from hostile(whole, 60)
    yield from islice(nonsense(whole), 0, None, 5)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_no_traceback(part: int, tmp_path: Path) -> None:
    file = tmp_path / "case.yaml"
    tried = list(islice(cases(), part, None, 10))
    assert len(tried) >= 10
    for _, configuration, what in tried:
        file.write_text(yaml.safe_dump(configuration))
        said = said_of(file)
        assert not said or re.fullmatch(r"error: .{8,400}\n\(.*\)", said), f"{what}: {said}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": {"init_args": {"root": None}}}, "data.root must not be null"),
        ({"data": {"init_args": {"partition": None}}}, "data.partition must not be null"),
        ({"trainer": 1e308}, "trainer"),
        ({"model": {"init_args": {"scheme": {"init_args": "1e"}}}}, "expected a mapping of settings"),
        (
            {"model": {"init_args": {"method": {"init_args": {"hidden_dim": 0}}}}},
            "hidden_dim must be at least 1, got 0",
        ),
        (
            {"model": {"init_args": {"method": {"init_args": {"output_dim": 0}}}}},
            "output_dim must be at least 1, got 0",
        ),
        ({"model": {"init_args": {"lr": 0.1}}}, "'lr' is not accepted; did you mean --model.optimizer.lr"),
        ({"model": {"init_args": {"optimizer": {"init_args": {"lr": "nan"}}}}}, "lr: expected a number, got 'nan'"),
        (
            {"model": {"init_args": {"selector": {"class_path": "FedHybridSelector", "init_args": {"window": 3}}}}},
            "'window' was removed: FedHybridSelector has Oort's defaults",
        ),
        (
            {
                "model": {
                    "init_args": {"aggregation": {"class_path": "StragglerMean", "init_args": {"rule": "unbiased"}}}
                }
            },
            "'unbiased' was removed: it was a reconstruction",
        ),
        ({"data": {"init_args": {"batch_size": 8}}}, "'batch_size' is not accepted; did you mean --model.batch_size"),
        ({"trainer": {"devices": -1}}, "trainer: "),
        ({"trainer": {"devices": [5]}}, "trainer: "),
        ({"trainer": {"default_root_dir": "x"}}, "set --run_dir"),
        ({"model": {"init_args": {"encoder": {"name": "vit_tinny"}}}}, "nearest names: vit_tiny_patch16_224"),
    ],
)
def test_what_is_wrong_is_said(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "case.yaml"
    file.write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "-c", f"{BASE}.yaml", "-c", str(file)], OnlyFit)
    assert message in str(stopped.value.code)


def test_the_traceback_is_there_for_who_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSSL_DEBUG", "1")
    with pytest.raises(ValueError, match="trainer: a setting is of the wrong kind") as error:
        main(["fit", "-c", f"{BASE}.yaml", "--trainer.devices=-1"], OnlyFit)
    assert isinstance(error.value.__cause__, TypeError)
