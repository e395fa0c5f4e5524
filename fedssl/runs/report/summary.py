"""Summary of a run: one sentence, a few large numbers, and tables."""

from __future__ import annotations

from typing import Any

from fedssl.runs.report.page import Fact, Table
from fedssl.runs.report.record import RunRecord
from fedssl.runs.results import ENCODERS
from fedssl.training.run_progress import UNFINISHED, shortfall
from fedssl.utils.units import format_bytes

MIB = 2**20
STAGE_METRICS = ("cost/down_bytes", "cost/up_bytes", "cost/macs", "cost/peak_activation_bytes", "client/loss")
QUALITY = (
    ("kNN top-1 %", "knn_top1"),
    ("linear top-1 %", "linear_top1"),
    ("linear per class %", "linear_mean_per_class"),
    ("linear F1 %", "linear_f1"),
    ("RankMe", "rankme"),
    ("feature spread", "feature_std"),
)


def sentence(record: RunRecord) -> str:
    """Summarise quality, cost for a device and memory limits; an unfinished run's shortfall comes first."""
    lacks = shortfall(record.results)
    good = (f"{UNFINISHED}: {lacks}. " if lacks else "") + quality(record.results)
    return " ".join([good, cost(record.results), fit(record)]) if record.federated else f"{good} There were no devices."


def quality(results: dict[str, Any]) -> str:
    """Describe the accuracy on test images, or the perplexity of held-out text."""
    if "perplexity" in results:
        return (
            f"Each of {results['test_characters']:,} held-out characters takes "
            f"{results['bits_per_character']:.2f} bits "
            f"(a perplexity of {results['perplexity']:.2f})."
        )
    return (
        f"Of {results['test_images']:,} test images, {results['knn_top1']:.1f} % are classified correctly by their "
        f"nearest neighbours and {results['linear_top1']:.1f} % by a linear probe{_gain(results)}."
    )


def _gain(results: dict[str, Any]) -> str:
    """Describe the gain of training over the run's start: random initialisation unless weights were loaded."""
    loaded = "start_knn_top1" in results
    if not loaded and "random_init_knn_top1" not in results:
        return ""
    prefix, what = ("start_", "the weights it started from") if loaded else ("random_init_", "random init")
    pairs = [(results[prefix + key], results[key]) for key in ("knn_top1", "linear_top1")]
    before = " and ".join(f"{value:.1f} %" for value, _ in pairs)
    gained = " and ".join(f"{after - value:+.1f}" for value, after in pairs)
    said = f"; before training ({what}) these were {before}, so training changed them by {gained} points"
    if loaded and "random_init_knn_top1" in results:
        chance = " and ".join(f"{results[f'random_init_{key}']:.1f} %" for key in ("knn_top1", "linear_top1"))
        said += f" (random init: {chance})"
    return said


def cost(results: dict[str, Any]) -> str:
    """Describe the mean cost for a device that took part."""
    down, up = (format_bytes(results[f"{key}_bytes_per_client"]) for key in ("down", "up"))
    return (
        f"In {results['rounds']} rounds with {results['clients']} devices, one that took part received {down}, sent "
        f"{up} and computed {gmacs(results['macs_per_client'])} on average, keeping at most "
        f"{format_bytes(results['peak_activation_bytes'])} of activations in a step."
    )


def fit(record: RunRecord) -> str:
    """Describe the run's memory limits and the number of devices that met them."""
    settings = record.config["model"]["init_args"]
    budget = settings.get("memory_budget")
    stages = record.results.get("eligibility")
    said = []
    if budget:
        limit = budget if isinstance(budget, str) else "what was available in each round"
        said.append(f"Its local steps were planned for less memory (memory_budget: {limit}).")
    if stages:
        worst = min(stages, key=lambda stage: stage["eligible"])
        all_fit = worst["eligible"] == worst["clients"]
        fitted = "all" if all_fit else f"at least {worst['eligible']} of"
        need = format_bytes(max(stage["need_bytes"] for stage in stages))
        said.append(f"Every stage fitted {fitted} {worst['clients']} devices; the largest needs at least {need}.")
    return " ".join(said) or "No memory limit was set."


def facts(record: RunRecord) -> list[Fact]:
    """Numbers that readers look for first."""
    results = record.results
    found = []
    if "perplexity" in results:
        found.append(
            Fact("bits a character", f"{results['bits_per_character']:.2f}", f"of {results['test_characters']:,}")
        )
    for title, key in QUALITY[:2]:
        if key not in results:
            continue
        known = [(label, results.get(f"{prefix}{key}")) for label, prefix in ENCODERS.items() if prefix]
        note = ", ".join(f"{label} {value:.1f} %" for label, value in known if value is not None)
        found.append(Fact(title.removesuffix(" %"), f"{results[key]:.1f} %", note))
    if record.federated:
        for label, key in (("received by a device", "down_bytes"), ("sent by a device", "up_bytes")):
            most = f"at most {format_bytes(results[f'{key}_max_client'])}"
            found.append(Fact(label, format_bytes(results[f"{key}_per_client"]), most))
        mean, most = (gmacs(results[f"macs_{which}"]).removesuffix("MACs") for which in ("per_client", "max_client"))
        found.append(Fact("MACs a device", mean, f"at most {most}"))
        peak = format_bytes(results["peak_activation_bytes"])
        found.append(Fact("memory of a step", peak, "activations, at most"))
    return found


def quality_table(record: RunRecord) -> Table:
    """Table of the representation's quality after and before training, or of the language model's."""
    results = record.results
    if "perplexity" in results:
        found = [
            f"{results['perplexity']:.3f}",
            f"{results['bits_per_character']:.3f}",
            f"{results['test_characters']:,}",
        ]
        header = ["perplexity a character", "bits a character", "held-out characters"]
        return Table(header, [found], "What the language model is worth", "Measured at the end of the run.")
    rows = []
    for name, prefix in ENCODERS.items():
        if prefix + "knn_top1" in results:
            rows.append([name, *(f"{results[prefix + key]:.2f}" for _, key in QUALITY)])
    for name, key in (("trained classifier", "classifier"), ("fine-tuned", "finetuned")):
        if f"{key}_top1" in results:
            found = [f"{results[f'{key}_{measure}']:.2f}" for measure in ("top1", "mean_per_class")]
            rows.append([name, "", *found, "", "", ""])
    probe = f"{results['probe']}, regularisation {results['probe_regularization']:g}"
    caption = (
        f"{results['test_images']:,} test images, {results['train_images']:,} labelled training images, features of "
        f"width {results['feature_dim']}, probe: {probe}. Measured at the end of the run."
    )
    return Table(["representation", *(name for name, _ in QUALITY)], rows, "What the representation is worth", caption)


def cost_table(record: RunRecord) -> Table:
    """Table of a device's costs over the whole run."""
    rows = []
    for name, key in (("mean", "per_client"), ("largest", "max_client")):
        down, up, macs = (record.results[f"{what}_{key}"] for what in ("down_bytes", "up_bytes", "macs"))
        rows.append([name, *_amounts(down / MIB, up / MIB, macs / 1e9)])
    return Table(["device", "received MiB", "sent MiB", "GMACs"], rows, "A device over the whole run")


def stage_table(record: RunRecord) -> Table:
    """Table of all clients' costs in each stage."""
    rows = []
    for number, sums in enumerate(stage_sums(record), 1):
        amounts = _amounts(sums["down_mib"], sums["up_mib"], sums["gmacs"], sums["peak_mib"])
        rounds = f"{sums['first_round']:.0f}-{sums['last_round']:.0f}"
        rows.append([str(number), rounds, *amounts, f"{sums['loss']:.3f}" if "loss" in sums else ""])
    header = ["stage", "rounds", "sent to clients MiB", "received from them MiB", "GMACs", "peak of a step MiB", "loss"]
    caption = "Sums over all clients; peak of the activations that a local step keeps; the last round's loss."
    return Table(header, rows, "All devices in each stage", caption)


def stage_sums(record: RunRecord) -> list[dict[str, float]]:
    """All clients' costs in each stage; rounds from 1, and the loss of the last round that has one."""
    found, start = [], 1
    for end in record.stages():
        down, up, macs, peak, loss = (_between(record, key, start, end) for key in STAGE_METRICS)
        sums = {"first_round": start, "last_round": end, "down_mib": sum(down) / MIB, "up_mib": sum(up) / MIB}
        sums |= {"gmacs": sum(macs) / 1e9, "peak_mib": max(peak, default=0) / MIB}
        found.append(sums | ({"loss": loss[-1]} if loss else {}))
        start = end + 1
    return found


def origin_table(record: RunRecord) -> Table:
    """Table of seed, commit, versions and wall time."""
    results = record.results
    rows = [["seed", str(results["seed"])], ["commit", results["commit"] or "unknown"]]
    rows += [["wall time", f"{results['wall_seconds']:,.0f} s in the last process"]]
    rows += [[package, number] for package, number in results["versions"].items()]
    return Table(["what", "value"], rows, "Seed and versions", text_columns=2)


def _amounts(*values: float) -> list[str]:
    return [f"{value:,.2f}" for value in values]


def gmacs(macs: float) -> str:
    """Format multiply-accumulates with a unit and at least two digits."""
    giga = macs / 1e9
    return f"{giga:,.0f} GMACs" if giga >= 100 else f"{giga:.3g} GMACs"


def _between(record: RunRecord, key: str, start: int, end: int) -> list[float]:
    return [value for at, value in zip(*record.curve(key), strict=True) if start <= at <= end]
