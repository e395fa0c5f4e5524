import json
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
from rich.console import Console
from torch.optim import SGD

from fedssl import Calibration, DeviceClasses, FederatedSSL
from fedssl.planning.command import fleet_tables, print_blocks
from fedssl.planning.fleet_plan import plan_fleet
from fedssl.planning.plan import Planner, plan_as_dict
from layerwise import EncoderSpec, LastLayers, LayerWise, Scheme, reference_scheme
from ssl_methods import DigitsViews, SimCLR

VIT = EncoderSpec("vit_tiny_patch16_224", 8, 1, options={"patch_size": 4, "depth": 2, "embed_dim": 16, "num_heads": 2})


@cache
def plain() -> Planner:
    return planner()


def planner(scheme: Scheme | None = None, images: tuple[int, ...] = (40, 20, 20, 20), **settings: Any) -> Planner:
    method = partial(SimCLR, hidden_dim=16, output_dim=8)
    optimizer: Callable[..., Any] = partial(SGD, lr=0.1)
    module = FederatedSSL(
        VIT,
        method,
        DigitsViews(),
        optimizer,
        scheme or LayerWise(),
        rounds=6,
        seed=0,
        batch_size=16,
        local_epochs=2,
        **settings,
    )
    return Planner(module.settings, list(images))


def fleet_of(plan: Planner, *classes: dict[str, Any]) -> dict[str, Any]:
    return plan_fleet(plan, DeviceClasses(list(classes)).profiles(len(plan.images), 0))


def device(**settings: Any) -> dict[str, Any]:
    return {"name": "d", "macs_per_second": 1e6, "download": 1000, "upload": 500, "count": 4} | settings


def sizes(plan: Planner) -> tuple[int, int, int, int]:
    """Bytes of both stages' trained parts, of what the second stage freezes, and both blocks' steps' MACs."""
    first, second = plan.settings.scheme.stages(2, 6)
    model = plan.model
    active = [plan.forecast(stage, 40).active_bytes for stage in (first, second)]
    frozen = sum(t.nbytes for part in model.read(model.frozen_names(second)).values() for t in part.values())
    return active[0], active[1], frozen, plan.forecast(second, 40).macs


def test_seconds_of_a_round_by_hand() -> None:
    plan = plain()
    found = fleet_of(plan, device(count=1), device(name="rest", macs_per_second=2e6, count=3))
    first, second, frozen, macs = sizes(plan)
    slow, fast = found["devices"]
    later = slow["stages"][1]
    assert later["round_seconds"]["download"] == pytest.approx(second / 1000)
    assert later["round_seconds"]["compute"] == pytest.approx(macs / 1e6)
    assert later["round_seconds"]["upload"] == pytest.approx(second / 500)
    assert later["round_seconds"]["total"] == pytest.approx(second / 1000 + macs / 1e6 + second / 500)
    assert later["first_round_seconds"] == pytest.approx(later["round_seconds"]["total"] + frozen / 1000)
    assert slow["stages"][0]["round_seconds"]["download"] == pytest.approx(first / 1000)
    assert (fast["name"], fast["clients"]) == ("rest", 3)
    assert fast["stages"][1]["round_seconds"]["compute"] == pytest.approx(macs / 2 / 2e6, rel=0.2)


def test_hours_are_the_sum_of_the_rounds() -> None:
    found = fleet_of(plain(), device())
    slowest = found["devices"][0]
    seconds = sum(stage["first_round_seconds"] + 2 * stage["round_seconds"]["total"] for stage in slowest["stages"])
    assert found["total"]["hours"] == pytest.approx(seconds / 3600)
    whole = slowest["end_to_end"]
    assert found["total"]["end_to_end_hours"] == pytest.approx(6 * whole["round_seconds"]["total"] / 3600)
    stage = found["stages"][1]
    assert stage["eligible_clients"] == 4
    assert stage["slowest_seconds"] == pytest.approx(slowest["stages"][1]["round_seconds"]["total"])
    mean = slowest["stages"][1]["round_seconds"]["total"] * 2 + slowest["stages"][1]["first_round_seconds"]
    assert stage["mean_round_seconds"] == pytest.approx(mean / 3)


def test_calibration_in_every_round_sends_frozen_layers_in_every_round() -> None:
    found = fleet_of(planner(calibration=Calibration()), device())
    later = found["devices"][0]["stages"][1]
    assert later["first_round_seconds"] == pytest.approx(later["round_seconds"]["total"])


def test_missing_memory() -> None:
    plan = plain()
    peaks = [max(s.step.peak for s in plan.plan(scheme)) for scheme in (plan.settings.scheme, reference_scheme())]
    enough = device(memory=f"{peaks[0]}B", count=1)
    found = fleet_of(plan, enough, device(name="tiny", memory="1KB", count=3))
    holds, tiny = found["devices"]
    assert [stage["missing_bytes"] for stage in holds["stages"]] == [0, 0]
    assert holds["end_to_end"]["missing_bytes"] == peaks[1] - peaks[0]
    assert all(stage["missing_bytes"] > 0 for stage in tiny["stages"])
    assert [stage["eligible_clients"] for stage in found["stages"]] == [1, 1]
    assert found["end_to_end"] == {"eligible_clients": 0, "slowest_seconds": None, "mean_round_seconds": None}
    assert found["total"]["hours"] > 0
    assert found["total"]["end_to_end_hours"] is None
    json.dumps(found, allow_nan=False)


def test_a_fleet_for_people() -> None:
    plan = plain()
    found = fleet_of(plan, device(count=1), {"name": "tiny", "memory": "1KB", "count": 3})
    console = Console(record=True, width=100)
    print_blocks(fleet_tables(found), console)
    said = console.export_text()
    assert "no limit" in said
    assert "1 of 4 clients can hold every stage" in said
    assert "tiny" in said


def test_many_kinds_of_devices_are_cut_short() -> None:
    found = fleet_of(plain(), device())
    found["devices"] *= 10
    console = Console(record=True, width=100)
    print_blocks(fleet_tables(found), console)
    assert "and 2 more: --json has them all" in console.export_text()


def test_a_run_of_its_own_devices_leaves_out_those_without_memory_and_its_reference_nobody() -> None:
    plan = plain()
    peak = max(stage.step.peak for stage in plan.plan(plan.settings.scheme))
    needs = [plan.forecast(stage, 40) for stage in plan.settings.scheme.stages(2, 6)]
    upload, macs = max(need.active_bytes for need in needs), max(need.macs for need in needs)
    holds = {"memory": f"{peak}B", "upload_limit": f"{upload}B", "macs_limit": macs, "count": 1}
    devices = DeviceClasses([holds, {"memory": "1KB", "count": 3}])
    limited = plan_as_dict(planner(devices=devices))
    free = plan_as_dict(plan)
    assert limited["total"]["up_bytes"] == pytest.approx(free["total"]["up_bytes"] / 4)
    assert limited["end_to_end"] == free["end_to_end"]


def test_the_slowest_client_of_a_class_is_not_always_the_first() -> None:
    """Of two equal devices the one with the smaller batch trains more blocks, so that its transfers take longer."""
    plan = planner(LastLayers(), images=(40, 4))
    (whole,) = plan.settings.scheme.stages(2, 6)
    peak = plan.forecast(plan.settings.scheme.choices(whole)[-1], 40).peak_memory_bytes
    assert plan.forecast(whole, 4).peak_memory_bytes <= peak < plan.forecast(whole, 40).peak_memory_bytes
    (found,) = fleet_of(plan, device(memory=f"{peak}B", macs_per_second=1e12, count=2))["devices"]
    stage, sent = found["stages"][0], plan.forecast(whole, 4).active_bytes
    assert stage["round_seconds"]["upload"] == pytest.approx(sent / 500)
    assert stage["first_round_seconds"] == pytest.approx(sent / 1000 + sent / 500, rel=1e-3)
    assert stage["peak_memory_bytes"] == peak


def test_a_run_that_fits_no_device_is_refused() -> None:
    devices = DeviceClasses([{"memory": "1KB", "count": 4}])
    with pytest.raises(ValueError, match="no device can hold stage 1"):
        plan_as_dict(planner(devices=devices))


def test_devices_must_be_as_many_as_clients() -> None:
    with pytest.raises(ValueError, match="count 5 clients, but there are 4"):
        fleet_of(plain(), device(count=5))
