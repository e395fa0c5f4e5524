"""Costs by depth and trained layers."""

import io
from collections.abc import Callable
from typing import Any

from rich.console import Console

from fedssl.devices import DeviceProfile
from fedssl.planning.command import layer_tables, print_blocks
from fedssl.planning.fleet_plan import layer_table
from fedssl.planning.plan import Planner
from layerwise import LastLayers


def test_costs_grow_with_each_trained_layer_and_each_frozen_one(make_settings: Callable[..., Any]) -> None:
    planner = Planner(make_settings(LastLayers([2, 3]), 5, "Supervised"), [8, 8, 4])
    stages = LastLayers().choices(LastLayers().stages(3, 5)[0])
    least = planner.forecast(stages[-1], 8).peak_memory_bytes
    table = layer_table(planner, [DeviceProfile(memory_bytes=size) for size in (least, 1e9, 9)])
    costs = {(row["depth"], row["trained"]): row for row in table["costs"]}
    assert list(costs) == [(2, 1), (2, 2), (3, 1), (3, 2), (3, 3)]
    for key in ("peak_memory_bytes", "macs"):
        assert costs[2, 1][key] < costs[3, 1][key] < costs[3, 2][key] < costs[3, 3][key]
    assert costs[2, 1]["active_bytes"] == costs[3, 1]["active_bytes"] < costs[3, 2]["active_bytes"]
    assert table["trained_layers"] == {2: [1, 2, 0], 3: [1, 3, 0]}
    assert table["depth"] == 3
    out = io.StringIO()
    print_blocks(layer_tables(table), Console(file=out, width=120))
    assert "depth 3: mean 1.33; clients: 1 train 0, 1 train 1, 1 train 3 (chosen)" in out.getvalue()
