"""Dry rounds beside real ones: the same cohorts, bytes, operations and seconds, without training."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from fedssl import (
    SCAFFOLD,
    ActivationBank,
    Calibration,
    Deadline,
    EightBit,
    GlobalAlignment,
    SmartFreezeSelector,
    TopK,
)
from fedssl.devices import DeviceProfile
from fedssl.federation.dry import dry_federation, dry_rounds
from fedssl.server.rounds import RoundReport
from layerwise import EndToEnd, LastLayers, LayerWise, Progressive, Scheme

MEDIUM = DeviceProfile(macs_per_second=1e6, down_bytes_per_second=1e5, up_bytes_per_second=5e4, availability=(0.7, 1.0))
SLOW = DeviceProfile(macs_per_second=4e5, down_bytes_per_second=1e5, up_bytes_per_second=5e4)
in_ci = partial(pytest.param, marks=pytest.mark.slow)
FOREVER = DeviceProfile(macs_per_second=1e2, down_bytes_per_second=1e5, up_bytes_per_second=5e4)


def costs(report: RoundReport) -> tuple[Any, ...]:
    """Everything that a dry round knows."""
    clients = (report.trained, report.dropped, report.ineligible, report.unavailable)
    lost = tuple(each.client_id for each in (*report.failures, *report.late))
    return clients, lost, report.down_bytes, report.up_bytes, report.macs, report.seconds


@pytest.mark.parametrize(
    ("scheme", "settings"),
    [
        (EndToEnd(), {"sizes": (8, 1, 9)}),
        (LayerWise(), {"cohort_size": 2, "dropout": 0.3}),
        in_ci(LayerWise(weight_transfer=True, renew_heads=True), {"method": "BYOL"}),
        in_ci(Progressive(warm_up_rounds=1), {"method": "MoCoV3", "rounds": 8, "cohort_size": 2}),
        (LayerWise(layer_budget=2), {"cohort_size": 2}),
        in_ci(Progressive(), {"alignment": GlobalAlignment(), "proximal": 0.1, "epochs": 2}),
        (LayerWise(), {"calibration": Calibration(batch_size=4), "cohort_size": 2}),
        in_ci(LayerWise(), {"bank": ActivationBank(2, refresh=2), "cohort_size": 2}),
        (LayerWise(layer_budget=2), {"bank": ActivationBank(2)}),
        in_ci(LayerWise(), {"bank": ActivationBank(1), "calibration": Calibration(batch_size=4, when="stage")}),
        in_ci(LayerWise(), {"aggregation": SCAFFOLD(), "cohort_size": 2}),
        (LayerWise(), {"compression": EightBit(), "cohort_size": 2}),
        in_ci(EndToEnd(), {"compression": TopK(0.3), "devices": [MEDIUM, SLOW, FOREVER], "deadline": Deadline(2.0)}),
        in_ci(LastLayers(), {"method": "Supervised", "devices": [MEDIUM, SLOW, MEDIUM]}),
        (LayerWise(), {"devices": [MEDIUM, SLOW, FOREVER], "deadline": Deadline(2.0)}),
        (LayerWise(), {"devices": [MEDIUM, SLOW, FOREVER], "deadline": Deadline(2.0, "send_finished_layers")}),
    ],
)
def test_a_dry_run_costs_what_the_run_costs(
    scheme: Scheme, settings: dict[str, Any], make_world: Callable[..., Any]
) -> None:
    settings = {"rounds": 6} | settings
    world = make_world(scheme, **settings)
    federation = world.federation
    dry_rounds(dry_federation(federation.settings, federation.sizes, federation.predictor))  # leaves the predictor fit
    dry = dry_federation(federation.settings, federation.sizes, federation.predictor)
    foretold = [costs(each.report) for each in dry_rounds(dry)]
    assert foretold == [costs(report) for report in world.run(settings["rounds"])]
    for client, cost in world.server.ledger.clients.items():
        assert vars(dry.server.ledger.clients[client]) | {"activation_bytes": cost.activation_bytes} == vars(cost)


def test_a_dry_run_leaves_everything_as_it_was(make_world: Callable[..., Any]) -> None:
    selector = SmartFreezeSelector()
    world, untouched = (make_world(LayerWise(weight_transfer=True), rounds=3, selector=selector) for _ in range(2))
    dry_rounds(dry_federation(world.federation.settings, world.federation.sizes, world.federation.predictor))
    assert repr(world.run(3)) == repr(untouched.run(3))


def test_nothing_is_learnt_from_a_dry_run(make_settings: Callable[..., Any]) -> None:
    """A selector that wants losses or updates gets none, and does not fail for want of them."""
    settings = make_settings(LayerWise(), 6, cohort={"selector": SmartFreezeSelector(), "participation": 2})
    federation = dry_federation(settings, [4, 9, 8], settings.predictor())
    assert [each.report.round for each in dry_rounds(federation)] == list(range(6))
