"""Results of a run, as ``results.json`` holds them."""

from __future__ import annotations

import json
import platform
import subprocess
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fedssl.runs.run_folder import read_metrics
from fedssl.training.federated import FederatedSSL
from fedssl.training.pretraining import Pretraining
from fedssl.utils.files import write_text
from fedssl.utils.resources import peak_process_bytes
from linear_eval import EvaluatedModule

PACKAGES = ("fedssl", "torch", "torchvision", "pytorch-lightning", "lightly", "timm", "scikit-learn", "numpy")
PROTOCOL = (
    "Accuracies in percent on the test images, measured once, after training (test/... in metrics.csv; eval/... is "
    "measured during training, on labelled training images held out as queries). kNN and probe learn from the labelled "
    "training images. start_...: the loaded weights that training started from; random_init_...: random "
    "initialisation, which is the start where there is no start_..."
)


def collect_results(module: EvaluatedModule, wall_seconds: float) -> dict[str, Any]:
    """Collect the results of a run, in plain types; accuracies in percent, sizes in bytes."""
    results: dict[str, Any] = {"seed": module.seed}
    if isinstance(module, Pretraining):
        encoder = module.model.encoder
        results |= module.summary | {"encoder": encoder.spec.name, "depth": encoder.depth}
        results |= module.progress.as_dict() if module.progress else {}
    if isinstance(module, FederatedSSL) and module.federation:
        server = module.federation.server
        results |= {
            "rounds": server.round,
            "clients": server.participation.num_clients,
            "clients_per_round": server.participation.size,
            "stage_rounds": server.stage_rounds,
            "local_epochs": module.settings.local.epochs,
            "failed_updates": server.failed_updates,
            "seconds": {phase: round(seconds, 3) for phase, seconds in module.seconds().items()},
            "process_peak_bytes": peak_process_bytes(),
        } | server.ledger.summary()
        if server.participation.fleet:
            fleet = server.participation.fleet
            results["simulated_seconds"] = round(fleet.now, 3)
            results["eligibility"] = [asdict(stage) for stage in fleet.eligibility(server.cheapest_stages())]
    results |= evaluation_results(module)
    return results | {"wall_seconds": round(wall_seconds, 1), "versions": versions(), "commit": commit()}


def evaluation_results(module: EvaluatedModule) -> dict[str, Any]:
    """Collect the final evaluation; keys of untrained networks begin with ``start_`` or ``random_init_``."""
    results: dict[str, Any] = {"protocol": PROTOCOL} if module.reports else {}
    for name, report in module.reports.items():
        prefix = "" if name == "encoder" else f"{name}_"
        results |= {prefix + key: value for key, value in report.as_dict().items()}
    if module.perplexity:
        results |= module.perplexity.as_dict() | {"test_characters": module.perplexity.characters}
    for name, found in (("classifier", module.classified), ("finetuned", module.finetuned)):
        if found:
            results |= {f"{name}_top1": found.accuracy, f"{name}_mean_per_class": found.mean_per_class_accuracy}
    if module.classified:
        results["classifier_per_class"] = list(module.classified.per_class_accuracy)
    return results


def accuracy_over_simulated_time(metrics: Path) -> list[tuple[float, float]]:
    """Seconds on the virtual clock and kNN top-1 in percent, of every evaluation during a run with devices.

    Args:
        metrics: ``metrics.csv`` of the run.
    """
    rows = [(row.get("time/simulated_seconds"), row.get("eval/knn_top1")) for row in read_metrics(metrics)]
    return [(float(seconds), float(accuracy)) for seconds, accuracy in rows if seconds and accuracy]


def write_results(results: dict[str, Any], path: Path) -> None:
    """Write the results as JSON, all or nothing."""
    write_text(path, json.dumps(results, indent=2, sort_keys=True) + "\n")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that computed the results."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Git commit of the code, with ``-dirty`` if it was changed; ``None`` outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
