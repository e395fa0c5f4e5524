"""Bytes that travel, counted by hand from the sizes of the layers."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from fedssl.protocol.messages import Failure, Result
from fedssl.server.calibration import Calibration
from fedssl.server.rounds import ClientCost, Ledger
from layerwise import EndToEnd, LayerWise, Progressive

# width 16, patches of 4x4 on grey 8x8 images, MLP of 64; SimCLR heads 16 -> 16 -> 8
STEM = 4 * (4 * 16 + 16 * 16 + 16)
BLOCK = 4 * (2 * 16 + (16 + 1) * 48 + (16 + 1) * 16 + 2 * 16 + (16 + 1) * 64 + (64 + 1) * 16)
TAIL = 4 * 2 * 16
HEAD = 4 * (16 * 16 + 4 * 16 + 16 * 8 + 4 * 8) + 8 * 2  # two counters of 8 bytes
EVERYONE = (0, 1, 2)


def traffic(world: Any, rounds: int) -> list[tuple[int, int]]:
    return [(report.down_bytes, report.up_bytes) for report in world.run(rounds)]


def test_end_to_end_sends_everything_both_ways(make_world: Callable[..., Any]) -> None:
    everything = 3 * (STEM + 3 * BLOCK + TAIL + HEAD)
    assert traffic(make_world(EndToEnd(), rounds=2), 2) == [(everything, everything)] * 2


def test_progressive_sends_what_is_there(make_world: Callable[..., Any]) -> None:
    sizes = [3 * (STEM + blocks * BLOCK + TAIL + HEAD) for blocks in (1, 2, 3)]
    assert traffic(make_world(Progressive()), 3) == [(size, size) for size in sizes]


def test_layer_wise_sends_newly_frozen_layers_once(make_world: Callable[..., Any]) -> None:
    up = BLOCK + TAIL + HEAD
    down = [up + STEM, up + STEM, up + STEM + BLOCK, up, up + BLOCK, up]
    ups = [up + STEM, up + STEM, up, up, up, up]
    expected = [(3 * d, 3 * u) for d, u in zip(down, ups, strict=True)]
    assert traffic(make_world(LayerWise(), rounds=6), 6) == expected


def test_newcomers_get_the_frozen_layers_and_returners_do_not(
    make_world: Callable[..., Any], plan_cohorts: Callable[..., None]
) -> None:
    plan_cohorts((0,), (0, 1), (0, 1), (0,), (0, 1, 2), (0, 1, 2))
    world = make_world(LayerWise(), rounds=6)
    active = BLOCK + TAIL + HEAD
    sent = {
        (0, 0): active + STEM,
        (1, 0): active + STEM,
        (1, 1): active + STEM,
        (2, 0): active + STEM + BLOCK,
        (2, 1): active + STEM + BLOCK,
        (3, 0): active,
        (4, 0): active + BLOCK,
        (4, 1): active + BLOCK,
        (4, 2): active + STEM + 2 * BLOCK,
        (5, 0): active,
        (5, 1): active,
        (5, 2): active,
    }
    for round_, report in enumerate(world.run(6)):
        assert report.down_bytes == sum(size for (at, _), size in sent.items() if at == round_), round_
    for client in EVERYONE:
        cost = world.server.ledger.clients[client]
        rounds = [at for at, who in sent if who == client]
        assert cost.down_bytes == sum(size for (_, who), size in sent.items() if who == client)
        assert cost.up_bytes == sum(active + (STEM if at < 2 else 0) for at in rounds)
        assert cost.rounds == len(rounds)


def test_who_missed_a_stage_gets_all_it_lacks(
    make_world: Callable[..., Any], plan_cohorts: Callable[..., None]
) -> None:
    plan_cohorts((0, 1), (0,), (0, 1))
    world = make_world(LayerWise(), rounds=3)
    world.run(2)
    world.server.begin_round()
    held, lacking = world.server.make_task(0), world.server.make_task(1)
    assert held.frozen.keys() == {"block.1"}
    assert lacking.frozen.keys() == lacking.frozen_ids.keys() == {"stem", "block.0", "block.1"}
    assert held.frozen_ids == lacking.frozen_ids


def test_calibration_in_every_round_sends_everything_again(make_world: Callable[..., Any]) -> None:
    world = make_world(LayerWise(), rounds=6, calibration=Calibration(batch_size=4))
    up = BLOCK + TAIL + HEAD
    present = [STEM + (round_ // 2 + 1) * BLOCK + TAIL + HEAD for round_ in range(6)]
    ups = [up + STEM, up + STEM, up, up, up, up]
    assert traffic(world, 6) == [(3 * d, 3 * u) for d, u in zip(present, ups, strict=True)]


def test_calibration_in_every_stage_sends_everything_once_a_stage(make_world: Callable[..., Any]) -> None:
    world = make_world(LayerWise(), rounds=6, calibration=Calibration(batch_size=4, when="stage"))
    up = BLOCK + TAIL + HEAD
    down = [up + STEM, up + STEM, up + STEM + BLOCK, up, up + STEM + 2 * BLOCK, up]
    assert [d for d, _ in traffic(world, 6)] == [3 * size for size in down]


def test_a_failed_client_is_booked_for_its_download_only(make_world: Callable[..., Any]) -> None:
    world = make_world(EndToEnd(), rounds=1, sizes=(4, 1))
    report = world.round()
    everything = STEM + 3 * BLOCK + TAIL + HEAD
    assert (report.down_bytes, report.up_bytes) == (2 * everything, everything)
    assert asdict(world.server.ledger.clients[1]) == asdict(ClientCost(down_bytes=everything))


def test_ledger_totals_are_those_of_the_reports(make_world: Callable[..., Any]) -> None:
    world = make_world(cohort_size=2, rounds=6, dropout=0.2)
    reports = world.run(6)
    clients = world.server.ledger.clients.values()
    for name in ("down_bytes", "up_bytes", "macs"):
        assert sum(getattr(cost, name) for cost in clients) == sum(getattr(report, name) for report in reports)
    assert max(c.activation_bytes for c in clients) == max(report.activation_bytes for report in reports)
    assert sum(cost.rounds for cost in clients) == sum(len(report.trained) for report in reports)


# --- the ledger itself


def result(client: int, macs: int, activation_bytes: int) -> Result:
    return Result(client, {}, 1, 0.0, 0.0, macs, activation_bytes, 1)


def test_ledger_by_hand() -> None:
    ledger = Ledger()
    ledger.sent(4, 100)
    ledger.received(result(4, 7, 50), 30)
    ledger.sent(4, 10)
    ledger.received(result(4, 7, 20), 30)
    ledger.sent(2, 40)
    assert ledger.clients == {4: ClientCost(2, 110, 60, 14, 50), 2: ClientCost(0, 40, 0, 0, 0)}
    assert ledger.summary() == {
        "down_bytes_per_client": 75.0,
        "down_bytes_max_client": 110,
        "up_bytes_per_client": 30.0,
        "up_bytes_max_client": 60,
        "macs_per_client": 7.0,
        "macs_max_client": 14,
        "peak_activation_bytes": 50,
    }


def test_ledger_is_restored() -> None:
    ledger, other = Ledger(), Ledger()
    ledger.sent(4, 100)
    ledger.received(result(4, 7, 50), 30)
    other.load_state_dict(ledger.state_dict())
    assert other.clients == ledger.clients
    assert Ledger().summary()["down_bytes_per_client"] == 0


def test_reports_name_who_failed(make_world: Callable[..., Any]) -> None:
    report = make_world(EndToEnd(), rounds=1, sizes=(4, 0)).round()
    assert report.failures == (Failure(1, "0 images are too few to contrast", skipped=True),)


@pytest.mark.parametrize("client", EVERYONE)
def test_task_is_for_its_client_and_round(client: int, make_world: Callable[..., Any]) -> None:
    world = make_world()
    world.run(1)
    world.server.begin_round()
    task = world.server.make_task(client)
    assert (task.client_id, task.round, task.stage) == (client, 1, world.server.stages[1])
