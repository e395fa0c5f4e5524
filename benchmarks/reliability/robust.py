"""Distance that liars move the aggregate of each rule, by their number."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import write_record
from fedssl.server.aggregation import Aggregation, CoordinateMedian, Krum, TrimmedMean, Update, WeightedMean

CLIENTS, SIZE = 12, 1000
LIARS = (1, 4, 5, 6)
SPREADS = (0.3, 2.0)
"""Standard deviations of the honest clients' changes around their mean, whose entries have size 1."""


def rules(liars: int) -> dict[str, Aggregation | None]:
    """The rules set for so many liars; ``None`` where that is impossible."""
    trim = liars / CLIENTS
    return {
        "WeightedMean": WeightedMean(),
        "CoordinateMedian": CoordinateMedian(),
        "TrimmedMean, trim liars/clients": TrimmedMean(trim) if trim < 0.5 else None,
        "TrimmedMean, trim 0.2": TrimmedMean(0.2),
        "Krum, byzantine = liars": Krum(liars) if 2 * liars + 3 <= CLIENTS else None,
    }


def relative_error(rule: Aggregation, liars: int, spread: float, seed: int) -> float:
    """Distance of the aggregate from the honest clients' mean, over that mean's length.

    A liar sends the honest mean times minus ten.
    """
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(SIZE, generator=generator).sign()
    honest = centre + spread * torch.randn(CLIENTS - liars, SIZE, generator=generator)
    mean = honest.mean(dim=0)
    found = aggregate(rule, [*honest, *[-10 * mean] * liars])
    return float((found - mean).norm() / mean.norm())


def aggregate(rule: Aggregation, changes: list[Tensor]) -> Tensor:
    """One round of a rule, from a model of zeros."""
    rule.begin_round({"layer/weight": torch.zeros(SIZE)})
    for change in changes:
        rule.add(Update(0, {"layer/weight": change}, 1, 1, 1.0))
    return rule.finish()["layer/weight"]


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``reliability_robust``."""
    command = commands.add_parser("reliability_robust", help=__doc__)
    command.add_argument("--seeds", type=int, default=10, help="Draws of the honest clients.")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace, folder: Path) -> None:
    """Lies to every rule."""
    table: list[dict[str, Any]] = []
    for spread in SPREADS:
        for name in rules(1):
            row: dict[str, Any] = {"spread": spread, "rule": name}
            for liars in LIARS:
                found = [_error(name, liars, spread, seed) for seed in range(arguments.seeds)]
                known = [error for error in found if error is not None]
                row[f"{liars} liars"] = f"{sum(known) / len(known):.2f}" if known else "refused"
            table.append(row)
    notes = f"""
{CLIENTS} clients a round, some of them liars who send minus ten times the honest mean. The relative error of the
aggregate, mean of {arguments.seeds} draws. A rule is refused where its settings cannot hold against so many.
"""
    write_record(folder, "reliability_robust", "Rules against liars", table, table, notes)


def _error(name: str, liars: int, spread: float, seed: int) -> float | None:
    rule = rules(liars)[name]
    return None if rule is None else relative_error(rule, liars, spread, seed)
