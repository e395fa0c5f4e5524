"""Results of a run: ``results.json``, its measures of quality and cost, and their tables."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console

from fedssl.runs.client_results import describe
from fedssl.runs.run_folder import read_metrics
from fedssl.training.endings import UNFINISHED, shortfall
from fedssl.training.federated import FederatedSSL
from fedssl.training.pretraining import Pretraining
from fedssl.utils.files import write_text
from fedssl.utils.resources import peak_process_bytes
from fedssl.utils.tables import Table
from fedssl.utils.units import MIB
from linear_eval import EvaluatedModule, wilson
from linear_eval.ngram import ORDER

PACKAGES = ("fedssl", "torch", "torchvision", "pytorch-lightning", "lightly", "timm", "scikit-learn", "numpy")
PROTOCOL = (
    "Accuracies in percent on the test images, measured once, after training (test/... in metrics.csv; eval/... is "
    "measured during training, on labelled training images held out as queries). kNN and probe learn from the labelled "
    "training images; centred: on features less the mean of those; full: kNN with all labelled training images. "
    "start_...: the loaded weights that training started from; random_init_...: random initialisation, which is the "
    "start where there is no start_..., and fine-tuned is training from scratch; raw_pixels_...: no encoder; "
    "majority_...: always the most frequent class of the labelled training images"
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
    """Collect the final evaluation; keys of baselines begin with their name, see ``PROTOCOL``."""
    results: dict[str, Any] = {"protocol": PROTOCOL} if module.reports else {}
    for name, report in module.reports.items():
        prefix = "" if name == "encoder" else f"{name}_"
        results |= {prefix + key: value for key, value in report.as_dict().items()}
    if module.perplexity and module.ngram_perplexity:
        results |= module.perplexity.as_dict() | {"test_characters": module.perplexity.characters}
        for name, found in (("start", module.start_perplexity), ("ngram", module.ngram_perplexity)):
            results |= {f"{name}_{key}": value for key, value in found.as_dict().items()} if found else {}
    for name, metrics in module.classifiers.items():
        results |= metrics.summary(name)
    if "classifier" in module.classifiers:
        results["classifier_per_class"] = list(module.classifiers["classifier"].per_class_accuracy)
    return results


def accuracy_over_simulated_time(metrics: Path) -> list[tuple[float, float]]:
    """Return seconds on the virtual clock and kNN top-1 in percent, of every evaluation during a run with devices.

    Args:
        metrics: ``metrics.csv`` of the run.
    """
    rows = [(row.get("time/simulated_seconds"), row.get("eval/knn_top1")) for row in read_metrics(metrics)]
    return [(float(seconds), float(accuracy)) for seconds, accuracy in rows if seconds and accuracy]


def write_results(results: dict[str, Any], path: Path) -> None:
    """Write the results as JSON, all or nothing."""
    write_text(path, json.dumps(results, indent=2, sort_keys=True) + "\n")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that computed the results."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def commit() -> str | None:
    """Return the Git commit of the code, with ``-dirty`` if it was changed; ``None`` outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


Results = Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """Number of ``results.json``.

    Args:
        title: Heading of its column, with the unit.
        key: Key in ``results.json``.
        unit: Divisor that converts the number to the unit of the title.
        digits: Digits shown after the decimal point.
    """

    title: str
    key: str
    unit: float = 1
    digits: int = 2

    def values(self, results: Sequence[Results], prefix: str = "") -> list[float]:
        """Return the values of the runs; empty if one of them lacks the number.

        Args:
            results: Results of the runs.
            prefix: Prefix of the key, for another encoder than the trained one (see ``ENCODERS``).
        """
        known = [run[prefix + self.key] / self.unit for run in results if prefix + self.key in run]
        return known if len(known) == len(results) else []

    def mean(self, results: Sequence[Results]) -> float | None:
        """Return the mean over the runs; ``None`` if one of them lacks the number."""
        values = self.values(results)
        return statistics.fmean(values) if values else None

    def text(self, results: Sequence[Results], prefix: str = "") -> str:
        """Format mean and standard deviation; empty if a run lacks the number."""
        values = self.values(results, prefix)
        return spread(values, self.digits) if values else ""


KNN, KNN_CENTRED = Measure("kNN top-1 %", "knn_top1"), Measure("centred kNN top-1 %", "knn_centred_top1")
FULL = (Measure("full kNN top-1 %", "knn_full_top1"), Measure("full centred kNN top-1 %", "knn_full_centred_top1"))
LINEAR, PER_CLASS = Measure("linear top-1 %", "linear_top1"), Measure("linear per class %", "linear_mean_per_class")
RANK, RANK_CENTRED = Measure("RankMe", "rankme"), Measure("centred RankMe", "rankme_centred")
UNEQUAL = (PER_CLASS, Measure("linear F1 %", "linear_f1"), Measure("linear AUROC %", "linear_auroc"))
"""Measures that count rare classes like frequent ones."""
QUALITY = (KNN, KNN_CENTRED, *FULL, LINEAR, *UNEQUAL, RANK, RANK_CENTRED, Measure("feature spread", "feature_std"))
LANGUAGE = (
    Measure("perplexity a character", "perplexity", digits=3),
    Measure("bits a character", "bits_per_character", digits=3),
    Measure("held-out characters", "test_characters", digits=0),
)
LANGUAGE_MODELS = {"trained": "", "start weights": "start_", f"{ORDER}-gram counter": "ngram_"}
"""Prefix of each language model's keys in ``results.json``."""
CLASSIFIED = (Measure("classifier top-1 %", "classifier_top1"), Measure("fine-tuned top-1 %", "finetuned_top1"))
ACCURACIES = (KNN, KNN_CENTRED, *FULL, LINEAR, *CLASSIFIED)
TRAFFIC = (Measure("received MiB", "down_bytes_per_client", MIB), Measure("sent MiB", "up_bytes_per_client", MIB))
MACS, KEPT = Measure("GMACs", "macs_per_client", 1e9), Measure("kept MiB", "peak_activation_bytes", MIB)
COSTS = (*TRAFFIC, MACS, KEPT)
"""Measures that are compared with those of end-to-end training."""
TIMES = (Measure("simulated min", "simulated_seconds", 60), Measure("wall s", "wall_seconds", digits=0))
MEASURES = (*ACCURACIES, *COSTS, *TIMES)
RAW_PIXELS = "raw_pixels_"
ENCODERS = {"trained": "", "start weights": "start_", "random init": "random_init_", "raw pixels": RAW_PIXELS}
"""Prefix of each evaluated representation's keys in ``results.json``; of pixels kNN and probe are known only."""
CLASSIFIERS = {
    "trained classifier": "classifier",
    "fine-tuned": "finetuned",
    "from scratch": "random_init_finetuned",
    "most frequent class": "majority",
}
"""First part of each classifier's keys in ``results.json``, where a linear probe's keys have ``linear``."""


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean, and standard deviation of the sample (n - 1); ``None`` for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Format the mean, and the standard deviation of values that differ."""
    mean, deviation = mean_and_deviation(values)
    return f"{mean:,.{digits}f}" + (f" ± {deviation:,.{digits}f}" if len(set(values)) > 1 else "")


def print_results(results: dict[str, Any], folder: Path, console: Console | None = None) -> None:
    """Print tables of quality and cost, and the run folder."""
    console = console or Console()
    title = " ".join(str(results[key]) for key in ("scheme", "method", "encoder") if key in results)
    measures = (KNN, KNN_CENTRED, *FULL, LINEAR, PER_CLASS, RANK)
    if "not_evaluated" in results:
        console.print(f"{title}: not evaluated, as {results['not_evaluated']}", highlight=False, soft_wrap=True)
    else:
        console.print(quality_table(results, measures, title or "evaluation").rich(console.width))
    if by_client := results.get("by_client"):
        console.print(describe(by_client), highlight=False, soft_wrap=True)
    if "down_bytes_per_client" in results:
        console.print(cost_table(results, "cost of a device over the whole run").rich())
    if results.get("simulated_seconds"):
        minutes = results["simulated_seconds"] / 60
        console.print(f"the run would take {minutes:,.1f} minutes on these devices", highlight=False)
    console.print(f"{results['wall_seconds']:.0f} s; everything is in {folder}", highlight=False, soft_wrap=True)


def print_shortfall(results: dict[str, Any]) -> None:
    """Print the last line of an unfinished run; nothing for a finished one."""
    if lacks := shortfall(results):
        Console().print(f"{UNFINISHED}: {lacks}", style="bold red", highlight=False, soft_wrap=True)


def quality_table(
    results: dict[str, Any], measures: Sequence[Measure], title: str, caption: str = "", intervals: bool = False
) -> Table:
    """Tabulate every evaluated representation and classifier, or the language model and the counter of n-grams.

    Args:
        results: Results of a run.
        measures: Columns; those without a value are left out.
        title: Title of the table.
        caption: Explanation of the table.
        intervals: Show the 95 % intervals of accuracies.
    """
    if "perplexity" in results:
        rows = [[name, *(each.text([results], key) for each in LANGUAGE)] for name, key in LANGUAGE_MODELS.items()]
        rows = [row for row in rows if any(row[1:])]
        return Table(["model", *(measure.title for measure in LANGUAGE)], rows, title, caption)
    keys = {name: [prefix + measure.key for measure in measures] for name, prefix in ENCODERS.items()}
    for name, part in CLASSIFIERS.items():
        keys[name] = [each.key.replace("linear", part) if "linear" in each.key else "" for each in measures]
    rows = [[name, *(_cell(results, key, intervals) for key in row)] for name, row in keys.items()]
    header = ["representation", *(measure.title for measure in measures)]
    rows = [row for row in rows if any(row[1:])]
    shown = [at for at in range(len(header)) if any(row[at] for row in rows)]
    return Table([header[at] for at in shown], [[row[at] for at in shown] for row in rows], title, caption)


def _cell(results: dict[str, Any], key: str, intervals: bool) -> str:
    if key not in results:
        return ""
    # Means over classes have no interval of this kind: their images do not count the same.
    limits = wilson(results[key], results["test_images"]) if intervals and key.endswith("_top1") else None
    return f"{results[key]:.2f}" + (f"\n({limits[0]:.1f} to {limits[1]:.1f})" if limits else "")


def cost_table(results: dict[str, Any], title: str) -> Table:
    """Tabulate a device's costs over the whole run."""
    totals = (*TRAFFIC, MACS)
    rows = []
    for name, end in (("mean", "per_client"), ("largest", "max_client")):
        values = [results[cost.key.replace("per_client", end)] / cost.unit for cost in totals]
        rows.append([name, *(f"{value:,.2f}" for value in values)])
    caption = f"activations kept for backward, peak of a step: {results[KEPT.key] / KEPT.unit:,.2f} MiB"
    return Table(["device", *(cost.title for cost in totals)], rows, title, caption)
