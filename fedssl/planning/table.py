"""Plans as tables for people."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

MIB = 2**20


def plain_table(title: str, columns: list[str], caption: str | None = None) -> Table:
    """An empty table of right-aligned columns that fits a narrow terminal."""
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def print_plan(plan: dict[str, Any], console: Console) -> None:
    """The stages, the whole run and end-to-end training; then as the paper counts."""
    summary = plan["summary"]
    table = plain_table(
        f"{summary['scheme']} {summary['method']}, a client over {summary['rounds']} rounds",
        ["stage", "blocks", "rounds", "peak MiB", "kept MiB", "GMACs", "down MiB", "up MiB"],
        "blocks: trained/present; kept: activations that autograd keeps for backward",
    )
    for stage in plan["stages"]:
        blocks = f"{len(stage['trained'])}/{len(stage['present'])}"
        activations = amount(stage["step"]["activations"] / MIB)
        peak, *costs = _cells(stage)
        table.add_row(str(stage["index"] + 1), blocks, str(stage["rounds"]), peak, activations, *costs)
    for label, key in (("all", "total"), ("end-to-end", "end_to_end")):
        peak, *costs = _cells(plan[key])
        table.add_row(label, "", str(summary["rounds"]), peak, "", *costs, style="bold")
    ratio = plan["ratio"]
    keys = ("macs", "down_bytes", "up_bytes")
    table.add_row("ratio", "", "", f"{ratio['peak_memory_bytes']:.2f}x", "", *(f"{ratio[k]:.2f}x" for k in keys))
    console.print(table)
    paper = plan["convention"]["paper"]
    for label, key in (("planned", "total"), ("end-to-end", "end_to_end")):
        figures = paper[key]
        console.print(
            f"as the paper counts, {label}: {figures['gflops']:,.1f} GFLOPs, {figures['traffic_gb']:,.2f} GB of "
            f"traffic, {figures['worst_traffic_gb']:,.2f} GB if every round downloads all layers",
            highlight=False,
        )


def amount(value: float) -> str:
    """A number with at most one decimal, and thousands separated."""
    return f"{value:,.0f}" if value >= 999.95 else f"{value:.1f}"


def _cells(costs: dict[str, Any]) -> list[str]:
    peak, macs = costs["peak_memory_bytes"] / MIB, costs["macs"] / 1e9
    return [amount(value) for value in (peak, macs, costs["down_bytes"] / MIB, costs["up_bytes"] / MIB)]
