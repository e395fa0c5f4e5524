"""Summary of a run: one sentence, a few large numbers, and tables."""

from __future__ import annotations

from typing import Any

from fedssl.runs.client_results import describe
from fedssl.runs.report.page import Fact
from fedssl.runs.report.record import RunRecord
from fedssl.runs.results import ENCODERS, FULL, KNN, LINEAR, QUALITY, quality_table
from fedssl.training.endings import UNFINISHED, shortfall
from fedssl.utils.tables import Table
from fedssl.utils.units import MIB, format_bytes

STAGE_METRICS = ("cost/down_bytes", "cost/up_bytes", "cost/macs", "cost/peak_activation_bytes", "client/loss")


def sentence(record: RunRecord) -> str:
    """Summarise quality, cost for a device and memory limits; an unfinished run's shortfall comes first."""
    lacks = shortfall(record.results)
    good = (f"{UNFINISHED}: {lacks}. " if lacks else "") + describe_quality(record.results)
    costs = [describe_cost(record.results), fit(record)] if record.federated else ["There were no devices."]
    return " ".join([good, *costs])


def describe_quality(results: dict[str, Any]) -> str:
    """Describe the accuracy on test images, or the perplexity of held-out text, or why there is neither."""
    if "not_evaluated" in results and "by_client" in results:
        return f"The representation was measured for each client alone, {describe(results['by_client'])}."
    if "not_evaluated" in results:
        return f"What the representation is worth was not measured, as {results['not_evaluated']}."
    if "perplexity" in results:
        characters, bits = results["test_characters"], results["bits_per_character"]
        said = f"Each of {characters:,} held-out characters takes {bits:.2f} bits"
        return f"{said} (a perplexity of {results['perplexity']:.2f})."
    return (
        f"Of {results['test_images']:,} test images, {results['knn_top1']:.1f} % are classified correctly by their "
        f"nearest neighbours and {results['linear_top1']:.1f} % by a linear probe{_gain(results)}."
    )


def _gain(results: dict[str, Any]) -> str:
    """Describe the gain of training over the run's start: random initialisation unless weights were loaded."""
    starts = {"start_": "the weights it started from", "random_init_": "random init"}
    known = [prefix for prefix in starts if prefix + KNN.key in results]
    if not known:
        return ""
    prefix, *others = known
    gained = " and ".join(f"{results[each.key] - results[prefix + each.key]:+.1f}" for each in (KNN, LINEAR))
    before = f"; before training ({starts[prefix]}) these were {_both(results, prefix)}"
    chance = "".join(f" ({starts[other]}: {_both(results, other)})" for other in others)
    return f"{before}, so training changed them by {gained} points{chance}"


def _both(results: dict[str, Any], prefix: str) -> str:
    return " and ".join(f"{results[prefix + measure.key]:.1f} %" for measure in (KNN, LINEAR))


def describe_cost(results: dict[str, Any]) -> str:
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
        fitted = "all" if worst["eligible"] == worst["clients"] else f"at least {worst['eligible']} of"
        need = format_bytes(max(stage["need_bytes"] for stage in stages))
        said.append(f"Every stage fitted {fitted} {worst['clients']} devices; the largest needs at least {need}.")
    return " ".join(said) or "No memory limit was set."


def facts(record: RunRecord) -> list[Fact]:
    """Return the numbers that readers look for first."""
    results = record.results
    found = []
    if "perplexity" in results:
        characters = f"of {results['test_characters']:,}"
        found.append(Fact("bits a character", f"{results['bits_per_character']:.2f}", characters))
    for measure in (KNN, LINEAR) if KNN.key in results else ():
        known = {name: results.get(prefix + measure.key) for name, prefix in ENCODERS.items()}
        own, *others = (f"{name} {value:.1f} %" for name, value in known.items() if value is not None)
        found.append(Fact(measure.title.removesuffix(" %"), own.removeprefix("trained "), ", ".join(others)))
    if record.federated:
        for label, key in (("received by a device", "down_bytes"), ("sent by a device", "up_bytes")):
            most = f"at most {format_bytes(results[f'{key}_max_client'])}"
            found.append(Fact(label, format_bytes(results[f"{key}_per_client"]), most))
        mean, most = (gmacs(results[f"macs_{which}"]).removesuffix("MACs") for which in ("per_client", "max_client"))
        found.append(Fact("MACs a device", mean, f"at most {most}"))
        peak = format_bytes(results["peak_activation_bytes"])
        found.append(Fact("memory of a step", peak, "activations, at most"))
    return found


def quality(results: dict[str, Any]) -> Table:
    """Tabulate the representation's quality after and before training, or of the language model's."""
    if "perplexity" in results:
        return quality_table(results, QUALITY, "What the language model is worth", "Measured at the end of the run.")
    probe = f"{results['probe']}, regularisation {results['probe_regularization']:g}"
    caption = (
        f"{results['test_images']:,} test images, {results['train_images']:,} labelled training images, features of "
        f"width {results['feature_dim']}, probe: {probe}. Measured at the end of the run."
    )
    if any(measure.key in results for measure in FULL):
        caption += " Full: all labelled training images vote."
    caption += " Centred: less the mean of the features that vote. In brackets: 95 % intervals of the test images."
    return quality_table(results, QUALITY, "What the representation is worth", caption, intervals=True)


def stage_table(record: RunRecord) -> Table:
    """Tabulate all clients' costs in each stage."""
    rows = []
    for number, sums in enumerate(stage_sums(record), 1):
        amounts = (f"{sums[key]:,.2f}" for key in ("down_mib", "up_mib", "gmacs", "peak_mib"))
        rounds = f"{sums['first_round']:.0f}-{sums['last_round']:.0f}"
        rows.append([str(number), rounds, *amounts, f"{sums['loss']:.3f}" if "loss" in sums else ""])
    header = ["stage", "rounds", "sent to clients MiB", "received from them MiB", "GMACs", "peak of a step MiB", "loss"]
    caption = "Sums over all clients; peak of the activations that a local step keeps; the last round's loss."
    return Table(header, rows, "All devices in each stage", caption)


def stage_sums(record: RunRecord) -> list[dict[str, float]]:
    """Add up all clients' costs in each stage; rounds from 1, and the loss of the last round that has one."""
    found, start, curves = [], 1, [record.curve(key) for key in STAGE_METRICS]
    for end in record.stages():
        down, up, macs, peak, loss = (values[(start <= rounds) & (rounds <= end)] for rounds, values in curves)
        sums = {"first_round": start, "last_round": end, "down_mib": down.sum() / MIB, "up_mib": up.sum() / MIB}
        sums |= {"gmacs": macs.sum() / 1e9, "peak_mib": peak.max(initial=0) / MIB}
        sums |= {"loss": loss[-1]} if len(loss) else {}
        found.append({key: float(value) for key, value in sums.items()})
        start = end + 1
    return found


def origin_table(record: RunRecord) -> Table:
    """Tabulate seed, commit, versions, wall time, and what was read of the user's own files."""
    results = record.results
    rows = [["seed", str(results["seed"])], ["commit", results["commit"] or "unknown"]]
    rows += [["wall time", f"{results['wall_seconds']:,.0f} s in the last process"]]
    rows += [[package, number] for package, number in results["versions"].items()]
    rows += [[f"files of {split}", account] for split, account in results.get("files", {}).items()]
    return Table(["what", "value"], rows, "Seed, versions and files", text_columns=2)


def gmacs(macs: float) -> str:
    """Format multiply-accumulates with a unit and at least two digits."""
    giga = macs / 1e9
    return f"{giga:,.0f} GMACs" if giga >= 100 else f"{giga:.3g} GMACs"
