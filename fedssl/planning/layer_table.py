"""What each depth and number of trained layers costs, and what each device can train (CAFF, arXiv 2411.07826)."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from rich.console import Console

from fedssl.devices import Fleet, device_extents, fleet_stages
from fedssl.planning.plan import Planner
from fedssl.planning.table import MIB, amount, plain_table


def layer_table(planner: Planner, fleet: Fleet) -> dict[str, Any]:
    """Costs by (l, t), trained layers of each client by l, and the depth that the fleet chooses.

    Args:
        planner: Of a run whose scheme offers choices.
        fleet: The clients' devices.
    """
    scheme, rounds, most = planner.module.scheme, planner.module.rounds, max(planner.images)
    variants = scheme.variants(planner.num_blocks, rounds)
    rows = []
    for *_, stage in variants:
        for choice in reversed(scheme.choices(stage)):
            row = {"depth": choice.depth, "trained": choice.extent}
            rows.append(row | asdict(planner.forecast(choice, most)))
    extents = device_extents(scheme, variants, fleet)
    trained = {stages[-1].depth: counts for stages, counts in zip(variants, extents, strict=True)}
    chosen = fleet_stages(scheme, planner.num_blocks, rounds, fleet)[-1].depth
    return {"images": most, "costs": rows, "trained_layers": trained, "depth": chosen}


def print_layer_table(table: dict[str, Any], console: Console) -> None:
    """The costs, then how many clients train how many layers at each depth."""
    columns = ["depth", "trained", "peak MiB", "up MiB", "GMACs"]
    caption = f"trained: last layers, or adapters of each; up, GMACs: of a round with {table['images']} images"
    printed = plain_table("what clients can train", columns, caption)
    for row in table["costs"]:
        sizes = (amount(row[key] / MIB) for key in ("peak_memory_bytes", "active_bytes"))
        printed.add_row(str(row["depth"]), str(row["trained"]), *sizes, f"{row['macs'] / 1e9:.2f}")
    console.print(printed)
    for depth, counts in table["trained_layers"].items():
        clients = ", ".join(f"{number} train {count}" for count, number in sorted(Counter(counts).items()))
        mean = sum(counts) / len(counts)
        mark = " (chosen)" if depth == table["depth"] else ""
        console.print(f"depth {depth}: mean {mean:.2f}; clients: {clients}{mark}", highlight=False)
