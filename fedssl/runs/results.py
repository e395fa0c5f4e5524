"""Results of a run: ``results.json`` and the table at its end."""

from __future__ import annotations

import csv
import json
import platform
import subprocess
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fedssl.training.federated import FederatedSSL
from fedssl.training.pretraining import Pretraining
from fedssl.training.run_progress import UNFINISHED, shortfall
from fedssl.utils.files import write_atomically
from fedssl.utils.resources import peak_process_bytes
from linear_eval import EvaluatedModule

PACKAGES = ("fedssl", "torch", "torchvision", "pytorch-lightning", "lightly", "timm", "scikit-learn", "numpy")
PROTOCOL = (
    "Accuracies in percent on the test images, measured once, after training (test/... in metrics.csv; eval/... is "
    "measured during training, on labelled training images held out as queries). kNN and probe learn from the labelled "
    "training images. start_...: the loaded weights that training started from; random_init_...: random "
    "initialisation, which is the start where there is no start_..."
)
MIB = 2**20


ENCODERS = {"trained": "", "start weights": "start_", "random init": "random_init_"}
"""Prefix of each evaluated encoder's keys in ``results.json``."""


def collect_results(module: EvaluatedModule, wall_seconds: float) -> dict[str, Any]:
    """Collect the results of a run, in plain types; accuracies in percent, sizes in bytes."""
    results: dict[str, Any] = {"seed": module.seed}
    if isinstance(module, Pretraining):
        results |= module.summary | {
            "encoder": module.model.encoder.spec.name,
            "depth": module.model.encoder.depth,
        }
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
            results["eligibility"] = [asdict(stage) for stage in fleet.eligibility(server.least_stages())]
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
    if module.classified:
        results["classifier_top1"] = module.classified.accuracy
        results["classifier_mean_per_class"] = module.classified.mean_per_class_accuracy
        results["classifier_per_class"] = list(module.classified.per_class_accuracy)
    if module.finetuned:
        results["finetuned_top1"] = module.finetuned.accuracy
        results["finetuned_mean_per_class"] = module.finetuned.mean_per_class_accuracy
    return results


def accuracy_over_simulated_time(metrics: Path) -> list[tuple[float, float]]:
    """Seconds on the virtual clock and kNN top-1 in percent, of every evaluation during a run with devices.

    Args:
        metrics: ``metrics.csv`` of the run.
    """
    if not metrics.exists():
        return []
    with metrics.open(newline="") as file:
        rows = [(row.get("time/simulated_seconds"), row.get("eval/knn_top1")) for row in csv.DictReader(file)]
    return [(float(seconds), float(accuracy)) for seconds, accuracy in rows if seconds and accuracy]


def write_results(results: dict[str, Any], path: Path) -> None:
    """Write the results as JSON, all or nothing."""
    text = json.dumps(results, indent=2, sort_keys=True) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def print_results(results: dict[str, Any], folder: Path, console: Console | None = None) -> None:
    """Print tables of quality and cost, and the run folder."""
    console = console or Console()
    title = " ".join(str(results[key]) for key in ("scheme", "method", "encoder") if key in results)
    console.print(_language_table(results, title) if "perplexity" in results else _quality_table(results, title))
    if "down_bytes_per_client" in results:
        console.print(_cost_table(results))
    if results.get("simulated_seconds"):
        minutes = results["simulated_seconds"] / 60
        console.print(f"the run would take {minutes:,.1f} minutes on these devices", highlight=False)
    console.print(f"{results['wall_seconds']:.0f} s; everything is in {folder}", highlight=False, soft_wrap=True)


def print_shortfall(results: dict[str, Any], console: Console | None = None) -> None:
    """Print the last line of an unfinished run; nothing for a finished one."""
    if lacks := shortfall(results):
        (console or Console()).print(f"{UNFINISHED}: {lacks}", style="bold red", highlight=False, soft_wrap=True)


def _quality_table(results: dict[str, Any], title: str) -> Table:
    table = Table(title=title or "evaluation", title_justify="left")
    table.add_column("representation")
    for column in ("kNN top-1 %", "linear top-1 %", "linear per class %", "RankMe"):
        table.add_column(column, justify="right")
    for label, prefix in ENCODERS.items():
        if f"{prefix}knn_top1" in results:
            keys = ("knn_top1", "linear_top1", "linear_mean_per_class", "rankme")
            table.add_row(label, *(f"{results[prefix + key]:.2f}" for key in keys))
    for label, key in (("trained classifier", "classifier"), ("fine-tuned", "finetuned")):
        if f"{key}_top1" in results:
            table.add_row(label, "", f"{results[f'{key}_top1']:.2f}", f"{results[f'{key}_mean_per_class']:.2f}", "")
    return table


def _language_table(results: dict[str, Any], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("perplexity a character", "bits a character", "held-out characters"):
        table.add_column(column, justify="right")
    found = (f"{results[key]:.3f}" for key in ("perplexity", "bits_per_character"))
    table.add_row(*found, f"{results['test_characters']:,}")
    return table


def _cost_table(results: dict[str, Any]) -> Table:
    table = Table(title="cost of a device over the whole run", title_justify="left")
    table.add_column("")
    for column in ("received MiB", "sent MiB", "GMACs"):
        table.add_column(column, justify="right")
    for label in ("per_client", "max_client"):
        mib = [results[f"{key}_{label}"] / MIB for key in ("down_bytes", "up_bytes")]
        gmacs = results[f"macs_{label}"] / 1e9
        table.add_row({"per_client": "mean", "max_client": "largest"}[label], *(f"{v:,.2f}" for v in (*mib, gmacs)))
    table.caption = f"activations kept for backward, peak of a step: {results['peak_activation_bytes'] / MIB:,.2f} MiB"
    return table


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
