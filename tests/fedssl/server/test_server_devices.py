"""Rounds on unequal devices: who takes part, and what the virtual clock shows."""

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fedssl.costs.prediction import StepPredictor
from fedssl.devices import Deadline, DeviceProfile
from fedssl.devices.fleet import EMPTY_ROUND_SECONDS
from fedssl.devices.profile import SECONDS_A_DAY
from fedssl.protocol.messages import num_bytes
from fedssl.server.selection import RandomSelector, RoundRobinSelector, SmartFreezeSelector
from layerwise import EndToEnd, LayerWise, Progressive, Stage

FAST = DeviceProfile("fast")
SPEED = 1e6
SELECTORS = [RandomSelector, RoundRobinSelector, SmartFreezeSelector]


def slow(**fields: Any) -> DeviceProfile:
    return DeviceProfile("slow", macs_per_second=SPEED, **fields)


def changed_parts(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {key.split("/")[0] for key in before if not torch.equal(before[key], after[key])}


def peaks(model: Any, stages: list[Stage], batch: int = 4) -> list[int]:
    predictor = StepPredictor(model)
    return [predictor(stage, batch).peak for stage in stages]


def kept_results(world: Any) -> list[Any]:
    return [copy.deepcopy(result) for result in world.results(world.server.begin_round())]


# --- memory


@pytest.mark.parametrize("selector", SELECTORS)
def test_ineligible_clients_never_get_a_task(selector: Any, make_world: Callable[..., Any], make_model: Any) -> None:
    """End-to-end training fits one device of three, the first stage all of them, the last stage two."""
    stages = LayerWise().stages(3, 6)
    first, second, last = peaks(make_model(), stages)
    (whole,) = peaks(make_model(), EndToEnd().stages(3, 6))
    assert first < second < last < whole
    devices = [DeviceProfile(memory_bytes=memory) for memory in (first, whole, last)]
    layer_wise = make_world(LayerWise(), rounds=6, sizes=(4, 4, 4), devices=devices, selector=selector())
    for report in layer_wise.run(6):
        assert report.ineligible == (() if report.stage == 0 else (0,))
        assert report.trained == ((0, 1, 2) if report.stage == 0 else (1, 2))
    costs = layer_wise.server.ledger.clients
    assert [costs[client].rounds for client in range(3)] == [2, 6, 6]
    end_to_end = make_world(EndToEnd(), rounds=2, sizes=(4, 4, 4), devices=devices, selector=selector())
    assert [(report.trained, report.ineligible) for report in end_to_end.run(2)] == [((1,), (0, 2))] * 2
    assert list(end_to_end.server.ledger.clients) == [1]


def test_eligible_is_who_holds_the_predicted_peak_to_the_byte(make_world: Callable[..., Any], make_model: Any) -> None:
    (peak,) = peaks(make_model(), EndToEnd().stages(3, 1))
    devices = [DeviceProfile(memory_bytes=peak), DeviceProfile(memory_bytes=peak - 1), FAST]
    world = make_world(EndToEnd(), rounds=1, sizes=(4, 4, 4), devices=devices)
    report = world.round()
    assert (report.trained, report.ineligible) == ((0, 2), (1,))
    with pytest.raises(ValueError, match="client 1 can train no variant of stage 1"):
        world.server.make_task(1)


def test_fewer_layers_on_the_client_fit_smaller_devices(make_world: Callable[..., Any], make_model: Any) -> None:
    """With a layer budget of two the last progressive stage costs what two layers cost."""
    two, three = peaks(make_model(), Progressive().stages(3, 3))[1:]
    devices = [DeviceProfile(memory_bytes=three - 1)] * 3
    assert two < three
    with pytest.raises(ValueError, match="no device can hold stage 3: the one that comes nearest lacks 1 B"):
        make_world(Progressive(), devices=devices)
    reports = make_world(Progressive(layer_budget=2), sizes=(4, 4, 4), devices=devices).run(3)
    assert all(report.ineligible == () for report in reports)


def test_a_stage_that_fits_nobody_is_refused_before_any_work(make_world: Callable[..., Any], make_model: Any) -> None:
    peak = peaks(make_model(), LayerWise().stages(3, 3))[0]
    devices = [DeviceProfile(memory_bytes=peak - 2048), DeviceProfile(memory_bytes=peak - 3000), slow(memory_bytes=9)]
    with pytest.raises(ValueError, match=r"no device can hold stage 1: .* lacks 2 KiB; use a smaller batch, fewer"):
        make_world(LayerWise(), devices=devices)


# --- the clock


def test_a_round_lasts_as_long_as_its_slowest_participant(make_world: Callable[..., Any]) -> None:
    """Two clients with 8 images and one with 4, which has the slowest lines."""
    down, up = 1e5, 2e4
    devices = [
        DeviceProfile(macs_per_second=2 * SPEED, down_bytes_per_second=down, up_bytes_per_second=up),
        DeviceProfile(macs_per_second=SPEED),
        DeviceProfile(down_bytes_per_second=down, up_bytes_per_second=up / 2),
    ]
    world = make_world(LayerWise(), rounds=6, sizes=(8, 8, 4), devices=devices)
    elapsed = 0.0
    for _ in range(6):
        results = kept_results(world)
        received = world.server.current.down_bytes
        sizes = [num_bytes(result.parts) for result in results]
        expected = max(
            received[0] / down + results[0].macs / SPEED / 2 + sizes[0] / up,
            results[1].macs / SPEED,
            received[2] / down + sizes[2] / up * 2,
        )
        report = world.server.end_round(results)
        elapsed += expected
        assert report.seconds == pytest.approx(expected)
        assert world.server.participation.fleet.now == pytest.approx(elapsed)


def test_nobody_there_costs_a_minute_or_the_deadline(make_world: Callable[..., Any]) -> None:
    away = DeviceProfile(availability=(0.0, 1.0))
    for deadline, seconds in ((None, EMPTY_ROUND_SECONDS), (Deadline(7.0), 7.0)):
        world = make_world(EndToEnd(), devices=[away] * 3, deadline=deadline)
        report = world.round()
        assert (report.trained, report.unavailable, report.seconds) == ((), (0, 1, 2), seconds)
        assert report.down_bytes == 0


def test_devices_come_and_go_over_the_day(make_world: Callable[..., Any]) -> None:
    """Rounds last a quarter of a day; the second client is there in the second half only."""
    quarter = SECONDS_A_DAY / 4
    devices = [FAST, DeviceProfile(availability=(0.0, 1.0)), DeviceProfile(availability=(1.0, 0.0, 0.0, 0.0))]
    world = make_world(EndToEnd(), rounds=8, devices=devices)
    trained = []
    for _ in range(8):
        trained.append(world.round().trained)
        world.server.participation.fleet.now = quarter * len(trained)
    assert trained == [(0, 2), (0,), (0, 1), (0, 1)] * 2


def test_selectors_learn_what_a_round_took(make_world: Callable[..., Any]) -> None:
    class Noting(RandomSelector):
        def observe(self, round_: int, outcomes: Any) -> None:
            seen.append([(o.client_id, o.num_images, o.seconds, o.update) for o in outcomes])

        def select(self, candidates: Any, *arguments: Any) -> list[int]:
            asked.append([(c.client_id, c.num_images, c.memory_bytes, c.seconds) for c in candidates])
            return super().select(candidates, *arguments)

    seen: list[Any] = []
    asked: list[Any] = []
    devices = [FAST, slow(memory_bytes=10**9), slow()]
    world = make_world(
        EndToEnd(), sizes=(4, 9, 8), devices=devices, selector=Noting(), deadline=Deadline(1.0, "send_finished_layers")
    )
    macs = {result.client_id: result.macs for result in kept_results(world)}
    assert [memory for _, _, memory, _ in asked[0]] == [math.inf, 10**9, math.inf]
    assert [seconds for *_, seconds in asked[0]] == pytest.approx([0.0, macs[1] / SPEED, macs[2] / SPEED])
    world.server.end_round(world.results(world.server.current.cohort))
    assert seen == [[(0, 4, 0.0, None), (1, 9, 1.0, None), (2, 8, 1.0, None)]]


# --- resume


@pytest.mark.parametrize(("selector", "stop"), list(zip(SELECTORS, (3, 4, 1), strict=True)))
def test_a_run_on_devices_resumes_bit_for_bit(selector: Any, stop: int, make_world: Callable[..., Any]) -> None:
    devices = [FAST, slow(), slow(availability=0.7), slow(availability=(0.9, 0.4))]
    settings = {"sizes": (4, 4, 8, 4), "cohort_size": 2, "dropout": 0.2, "deadline": Deadline(3.0)}
    whole, resumed = (
        make_world(LayerWise(), rounds=6, devices=devices, selector=selector(), **settings) for _ in range(2)
    )
    whole.run(stop)
    file = io.BytesIO()
    torch.save(whole.checkpoint(), file)
    file.seek(0)
    resumed.restore(torch.load(file, weights_only=True))
    assert resumed.server.participation.fleet.now == whole.server.participation.fleet.now > 0
    assert repr(resumed.run(6 - stop)) == repr(whole.run(6 - stop))
    assert not changed_parts(resumed.weights(), whole.weights())
    assert repr(resumed.server.participation.state_dict()) == repr(whole.server.participation.state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "made with virtual clock True, this run has False"),
        (
            {"devices": [FAST] * 3},
            r"made with deadline Deadline\(seconds=5.0, late='drop'\), this run has None",
        ),
        ({"devices": [FAST] * 3, "deadline": Deadline(6.0)}, r"this run has Deadline\(seconds=6.0, late='drop'\)"),
    ],
)
def test_a_checkpoint_of_other_devices_is_refused(
    settings: dict[str, Any], message: str, make_world: Callable[..., Any]
) -> None:
    stopped, other = make_world(devices=[FAST] * 3, deadline=Deadline(5.0)), make_world(**settings)
    stopped.run(1)
    with pytest.raises(ValueError, match=message):
        other.server.load_state_dict(stopped.server.state_dict())
