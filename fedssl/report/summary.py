"""A run in one sentence, in a few large numbers and in tables."""

from __future__ import annotations

from typing import Any

from fedssl.report.page import Fact, Table
from fedssl.report.record import RunRecord
from fedssl.units import format_bytes

QUALITY = (
    ("kNN top-1 %", "knn_top1"),
    ("linear top-1 %", "linear_top1"),
    ("linear per class %", "linear_mean_per_class"),
    ("linear F1 %", "linear_f1"),
    ("RankMe", "rankme"),
    ("feature spread", "feature_std"),
)


def sentence(record: RunRecord) -> str:
    """How good the representation is, what it cost each device, and whether it fitted."""
    results = record.results
    before = (
        f" (before training: {results['random_init_knn_top1']:.1f} % and {results['random_init_linear_top1']:.1f} %)"
        if "random_init_knn_top1" in results
        else ""
    )
    good = (
        f"Of {results['test_images']:,} test images, {results['knn_top1']:.1f} % are classified correctly by their "
        f"nearest neighbours and {results['linear_top1']:.1f} % by a linear probe{before}."
    )
    return " ".join([good, cost(results), fit(record)]) if record.federated else f"{good} There were no devices."


def cost(results: dict[str, Any]) -> str:
    """What a device paid on average."""
    down, up = (format_bytes(results[f"{key}_bytes_per_client"]) for key in ("down", "up"))
    return (
        f"In {results['rounds']} rounds each of {results['clients']} devices received {down}, sent {up} and computed "
        f"{gmacs(results['macs_per_client'])} on average, keeping at most "
        f"{format_bytes(results['peak_activation_bytes'])} of activations in a step."
    )


def fit(record: RunRecord) -> str:
    """Whether the memory of the devices was enough, as far as the run had a limit."""
    settings = record.config["model"]["init_args"]
    budget = settings.get("memory_budget")
    stages = record.results.get("eligibility")
    said = []
    if budget:
        limit = budget if isinstance(budget, str) else "what was available in each round"
        said.append(f"Its local steps were planned to fit into the memory budget ({limit}).")
    if stages:
        worst = min(stages, key=lambda stage: stage["eligible"])
        said.append(
            f"Every stage fitted {worst['eligible']} of {worst['clients']} devices or more; the largest needed "
            f"{format_bytes(max(stage['need_bytes'] for stage in stages))}."
        )
    return " ".join(said) or "No memory limit was set."


def facts(record: RunRecord) -> list[Fact]:
    """The numbers that are looked for first."""
    results = record.results
    found = []
    for label, key in QUALITY[:2]:
        before = results.get(f"random_init_{key}")
        note = "" if before is None else f"random init {before:.1f} %"
        found.append(Fact(label.removesuffix(" %"), f"{results[key]:.1f} %", note))
    if record.federated:
        for label, key in (("received a device", "down_bytes"), ("sent a device", "up_bytes")):
            most = f"at most {format_bytes(results[f'{key}_max_client'])}"
            found.append(Fact(label, format_bytes(results[f"{key}_per_client"]), most))
        most = f"at most {gmacs(results['macs_max_client'])}"
        found.append(Fact("computed a device", gmacs(results["macs_per_client"]), most))
        peak = format_bytes(results["peak_activation_bytes"])
        found.append(Fact("activations of a step", peak, "kept for backward, at most"))
    return found


def quality_table(record: RunRecord) -> Table:
    """What the representation is worth, after and before training."""
    results = record.results
    rows = []
    for name, prefix in (("trained", ""), ("random init", "random_init_")):
        if prefix + "knn_top1" in results:
            rows.append([name, *(f"{results[prefix + key]:.2f}" for _, key in QUALITY)])
    for name, key in (("trained classifier", "classifier"), ("fine-tuned", "finetuned")):
        if f"{key}_top1" in results:
            found = [f"{results[f'{key}_{measure}']:.2f}" for measure in ("top1", "mean_per_class")]
            rows.append([name, "", *found, "", "", ""])
    probe = f"{results['probe']}, regularisation {results['probe_regularization']:g}"
    caption = (
        f"{results['test_images']:,} test images, {results['train_images']:,} labelled training images, features of "
        f"width {results['feature_dim']}, probe: {probe}. The last round's values."
    )
    return Table(["representation", *(name for name, _ in QUALITY)], rows, caption=caption)


def cost_table(record: RunRecord) -> Table:
    """What a device paid over the whole run."""
    rows = []
    for name, key in (("mean of the devices", "per_client"), ("largest", "max_client")):
        traffic = [format_bytes(record.results[f"{direction}_bytes_{key}"]) for direction in ("down", "up")]
        rows.append([name, *traffic, gmacs(record.results[f"macs_{key}"])])
    return Table(["a device, whole run", "received", "sent", "computed"], rows)


def stage_table(record: RunRecord) -> Table:
    """What all clients paid in each stage."""
    keys = ("cost/down_bytes", "cost/up_bytes", "cost/macs", "cost/peak_activation_bytes", "client/loss")
    rows, start = [], 1
    for number, end in enumerate(record.stages(), 1):
        values = [_between(record, key, start, end) for key in keys]
        down, up, macs = (sum(each) for each in values[:3])
        loss = f"{values[4][-1]:.3f}" if values[4] else ""
        peak = format_bytes(max(values[3]))
        rounds = f"{start}-{end}" if end > start else str(end)
        rows.append([str(number), rounds, format_bytes(down), format_bytes(up), gmacs(macs), peak, loss])
        start = end + 1
    header = ["stage", "rounds", "sent to clients", "received from them", "computed", "activations of a step", "loss"]
    return Table(header, rows, "Stages", "Sums over all clients; the largest step; the loss of the last round.")


def origin_table(record: RunRecord) -> Table:
    """Seed, commit, versions and wall time."""
    results = record.results
    rows = [["seed", str(results["seed"])], ["commit", results["commit"] or "unknown"]]
    rows += [["wall time", f"{results['wall_seconds']:,.0f} s in the last process"]]
    rows += [[package, number] for package, number in results["versions"].items()]
    return Table(["", ""], rows, text_columns=2)


def gmacs(macs: float) -> str:
    """Multiply-accumulates with a unit and at least two digits."""
    giga = macs / 1e9
    return f"{giga:,.0f} GMACs" if giga >= 100 else f"{giga:.3g} GMACs"


def _between(record: RunRecord, key: str, start: int, end: int) -> list[float]:
    return [value for at, value in zip(*record.curve(key), strict=True) if start <= at <= end]
