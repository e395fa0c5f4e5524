"""Run folders as ``fit`` would leave them, without running anything."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from finished_runs import MIB, configuration, results

from fedssl.comparison.run import Run


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run's folder; without results it has a checkpoint of its second round."""

    def make(name: str, config: dict[str, Any], found: dict[str, Any] | None = None) -> Path:
        folder = tmp_path / name
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        (folder / "checkpoints" / "00001.ckpt").write_bytes(b"")
        if found is not None:
            (folder / "results.json").write_text(json.dumps(found))
        return folder

    return make


@pytest.fixture
def six_runs() -> list[Run]:
    """Two schemes with seeds 0, 1 and 2; the layer-wise one of seed 2 failed."""
    runs = []
    for seed, knn in enumerate((90.0, 92.0, 94.0)):
        folder = Path(f"e{seed}")
        runs.append(Run(folder, configuration(seed), results(seed, knn=knn)))
        cheap = {"down_bytes_per_client": (19.0 + 2 * seed) * MIB, "peak_activation_bytes": 10 * MIB}
        found = results(seed, "layer-wise", knn - 4, **cheap) if seed < 2 else {}
        runs.append(Run(Path(f"l{seed}"), configuration(seed, "LayerWise"), found, "" if found else "no memory"))
    return runs
