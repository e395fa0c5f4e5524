"""Benchmarks that cannot run here run dry, so that they are found working where they can."""

import sys
from pathlib import Path

import pytest

from benchmarks import run


@pytest.mark.slow
def test_the_gpu_benchmark_runs_dry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmarks.run", "gpu", "--dry"])
    run.main()
    records = tmp_path / "runs" / "benchmark_gpu"
    assert sorted(path.name for path in records.glob("*.md")) == ["gpu_lightly.md", "gpu_options.md", "gpu_steps.md"]
    assert "| ViT-Tiny | stage 2 |" in (records / "gpu_steps.md").read_text()


def test_without_a_card_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["benchmarks.run", "gpu"])
    with pytest.raises(SystemExit, match="there is no GPU here; --dry"):
        run.main()
