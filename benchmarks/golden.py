"""Golden runs: proof that a change of the code changes no number.

    OMP_NUM_THREADS=1 python -m benchmarks.golden record FOLDER     before the change
    OMP_NUM_THREADS=1 python -m benchmarks.golden compare FOLDER    after it

Each of the runs below is shrunk to seconds. Its weights, ``metrics.csv``, ``results.json`` and the output of
``plan --json`` are recorded; wall-clock times, versions and the commit are left out. Numbers are equal bit for bit on
one machine and one version of PyTorch only, so they are recorded anew for each change and never committed.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parent.parent / "tests"))  # last: tests/fedssl must not hide the package
from test_configs import OWN
from tiny_runs import ROOT, TINY, TINY_FEDERATION, TINY_TEXT, environment

QUIET = ["--trainer.logger=false"]
RUNS: dict[str, tuple[str, list[str]]] = {
    "layer-wise": ("lw_fedssl.yaml", TINY_FEDERATION),
    "everything": (
        "lw_fedssl.yaml",
        [
            *TINY_FEDERATION,
            "--model.rounds=8",
            "--model.local_epochs=2",
            "--model.calibration.epochs=1",
            "--model.alignment=MoonAlignment",
            "--data.auxiliary_fraction=0.2",
            "--model.server_optimizer=torch.optim.SGD",
            "--model.server_optimizer.lr=1.0",
            "--model.server_optimizer.momentum=0.5",
            "--model.dropout=0.2",
            "--model.memory_budget=4 bits",
        ],
    ),
    "progressive": (
        "prog_fedssl.yaml",
        [
            *TINY_FEDERATION,
            "--model.method=BYOL",
            "--model.alignment=GlobalAlignment",
            "--model.proximal=0.01",
            "--model.server_optimizer=torch.optim.Adam",
            "--model.server_optimizer.lr=0.01",
        ],
    ),
    "end-to-end": ("fedssl.yaml", [*TINY_FEDERATION, "--model.method=MoCoV3", "--model.micro_batch=4"]),
    "fedema": ("fedssl.yaml", [*TINY_FEDERATION, "--model.method=BYOL", "--model.start=fedssl.FedEMA"]),
    "bank": ("lw_fedssl.yaml", [*TINY_FEDERATION, "--model.bank.refresh=2", "--model.participation=2"]),
    "stragglers": (
        "lw_fedssl.yaml",
        [
            *TINY_FEDERATION,
            "--model.devices=RandomDevices",
            "--model.devices.macs_per_second=[1.0e+7, 1.0e+9]",
            "--model.devices.availability=[0.6, 1.0]",
            "--model.deadline.seconds=0.4",
            "--model.deadline.late=send_finished_layers",
            "--model.aggregation=StragglerMean",
        ],
    ),
    "smartfreeze": ("smartfreeze.yaml", OWN["smartfreeze"]),
    "progfed": ("progfed.yaml", OWN["progfed"]),
    "depth-dropout": ("fll.yaml", OWN["fll"]),
    "fedhybrid": ("fedhybrid.yaml", OWN["fedhybrid"]),
    "caff": ("caff.yaml", OWN["caff"]),
    "text": ("pretrain_tiny_lm.yaml", TINY_TEXT),
    "centralized": (
        "centralized.yaml",
        [*TINY, "--trainer.max_epochs=2", "--data.batch_size=8", "--model.method=BYOL"],
    ),
}
PASSING = ("time/", "cost/process_peak_bytes", "step")
UNSTABLE = {
    "wall_seconds",
    "commit",
    "versions",
    "seconds",
    "accuracy_over_simulated_time",
    "run",
    "protocol",
    "threads",
    "process_peak_bytes",
}


def record(name: str, folder: Path) -> None:
    """Trains and plans one run and writes its figures to ``folder/NAME.json``."""
    config, settings = RUNS[name]
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        _train_py("fit", "-c", config, *settings, *QUIET, f"--run_dir={run}")
        figures = {
            "weights": _weights(run / "encoder" / "model.safetensors"),
            "metrics": _metrics(run / "metrics.csv"),
            "results": _without(json.loads((run / "results.json").read_text())),
        }
    if name != "centralized":
        figures["plan"] = json.loads(_train_py("plan", "-c", config, *settings, "--json"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(figures, indent=1, sort_keys=True))


def differences(then: Any, now: Any, where: str = "") -> list[str]:
    """Paths at which two records differ, with both values."""
    if isinstance(then, dict) and isinstance(now, dict):
        keys = sorted(then.keys() | now.keys())
        return [line for key in keys for line in differences(then.get(key), now.get(key), f"{where}/{key}")]
    return [] if then == now else [f"{where}: {str(then)[:200]} -> {str(now)[:200]}"]


def _train_py(*arguments: str) -> str:
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment() | {"FEDSSL_DEBUG": "1"})
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}\n{done.stderr[-3000:]}")
    return done.stdout


def _weights(path: Path) -> dict[str, str]:
    return {k: hashlib.sha256(v.numpy().tobytes()).hexdigest()[:16] for k, v in load_file(path).items()}


def _metrics(path: Path) -> dict[str, list[str]]:
    with path.open() as file:
        rows = list(csv.DictReader(file))
    keys = [key for key in rows[0] if not key.startswith(PASSING) or key.startswith("time/simulated")]
    return {key: [row[key] for row in rows] for key in keys}


def _without(results: Any) -> Any:
    if isinstance(results, dict):
        return {key: _without(value) for key, value in results.items() if key not in UNSTABLE}
    return results


def main() -> None:
    """Records or compares the runs named, or all."""
    verb, folder, *names = sys.argv[1:]
    found: list[str] = []
    for name in names or RUNS:
        if verb == "record":
            record(name, Path(folder))
        else:
            with tempfile.TemporaryDirectory() as scratch:
                record(name, Path(scratch))
                then, now = (json.loads((Path(f) / f"{name}.json").read_text()) for f in (folder, scratch))
            found += (different := differences(then, now, name))
            print(name, "differs" if different else "equal", flush=True)
    sys.exit("\n".join(found) if found else 0)


if __name__ == "__main__":
    os.environ.setdefault("WANDB_MODE", "offline")
    main()
