"""Flower without a network: the real ServerApp and ClientApp, on a grid in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import TINY_FEDERATION

MISSING = "the extra fedssl[flower] is not installed"


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Three nodes, which poll fast and keep what they keep below the test's folder."""
    pytest.importorskip("flwr", reason=MISSING)
    from local_grid import LocalGrid

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("fedssl.flower.engine.POLL_SECONDS", 0.01)
    monkeypatch.setattr("sys.argv", ["train.py"])
    return LocalGrid({"client-id": client} for client in range(3))


@pytest.fixture
def flower(tmp_path: Path) -> Callable[..., Path]:
    """Runs the ServerApp on a grid and returns the run's folder."""

    def run(
        grid: Any,
        *settings: str,
        tiny: Sequence[str] = TINY_FEDERATION,
        folder: str = "flower",
        resume: str = "",
        **config: Any,
    ) -> Path:
        from flwr.app import Context, RecordDict
        from local_grid import RUN_CONFIG

        from fedssl.flower import server_app

        arguments = " ".join(f"'{each}'" for each in (*tiny, "--trainer.logger=false", *settings))
        own = {"arguments": arguments, "run-dir": str(tmp_path / folder), "resume": resume}
        more = {key.replace("_", "-"): value for key, value in config.items()}
        context = Context(1, 1, {}, RecordDict(), RUN_CONFIG | own | more)
        server_app.app(grid=grid, context=context)
        return tmp_path / folder

    return run
