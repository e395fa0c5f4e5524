"""Devices and the virtual clock, without a server."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fedssl.costs.prediction import Forecast, Need, StepPredictor, batches_of_epoch
from fedssl.devices import Deadline, Delivery, DeviceProfile, Fleet
from fedssl.devices.fleet import EMPTY_ROUND_SECONDS
from fedssl.devices.profile import SECONDS_A_DAY
from fedssl.protocol.messages import Failure, Result
from fedssl.server.participation import Participation
from layerwise import LayerWise, Stage

STAGES = [Stage(0, (0,), (0,), True, 1), Stage(1, (0, 1), (1,), False, 1)]
SLOW = DeviceProfile("slow", 1000, 10.0, 20.0, 10.0)


def need(stage: Stage, images: int) -> Need:
    """The second stage takes twice the memory; ten multiply-accumulates an image."""
    return Need(100 * (stage.index + 1) * min(images, 4), 10 * images, 60)


def fleet_of(*profiles: DeviceProfile, images: list[int] | None = None, deadline: Deadline | None = None) -> Fleet:
    return Fleet(list(profiles), images or [8] * len(profiles), need, deadline)  # type: ignore[arg-type]


def result(client: int, macs: int = 100, numbers: int = 10) -> Result:
    parts = {"stem": {"w": torch.zeros(numbers)}, "tail": {"w": torch.zeros(numbers)}}
    return Result(client, parts, 8, 1.0, 1.0, macs, 0, 1)


# --- memory


def test_a_device_holds_what_fits_to_the_byte() -> None:
    devices = [DeviceProfile(memory_bytes=memory) for memory in (399, 400, 799, 800, math.inf)]
    fleet = fleet_of(*devices)
    assert [fleet.holds(client, STAGES[0]) for client in range(5)] == [False, True, True, True, True]
    assert [fleet.holds(client, STAGES[1]) for client in range(5)] == [False, False, False, True, True]


def test_few_images_make_small_batches_which_take_less() -> None:
    fleet = fleet_of(DeviceProfile(memory_bytes=300), DeviceProfile(memory_bytes=300), images=[3, 4])
    assert [fleet.holds(client, STAGES[0]) for client in (0, 1)] == [True, False]


def test_devices_go_by_the_images_that_their_clients_really_have() -> None:
    fleet = fleet_of(SLOW, DeviceProfile(memory_bytes=300), images=[3, 3])
    participation = Participation([3, 3], fleet=fleet)
    for client in (0, 1):
        participation.set_images(client, 8)
    assert participation.images == [8, 8]
    assert participation.draw(0, STAGES[:1]).ineligible == (1,)
    assert fleet.expected_seconds(0, STAGES[0]) == 60 / 20 + 80 / 10 + 60 / 10


def test_a_stage_that_fits_nobody_is_refused_with_the_missing_bytes() -> None:
    fleet = fleet_of(DeviceProfile(memory_bytes=500), DeviceProfile(memory_bytes=700))
    fleet.check(STAGES[:1])
    with pytest.raises(ValueError, match=r"no device can hold stage 2: .*nearest lacks 100 B; use a smaller batch"):
        fleet.check(STAGES)
    fleet_of(DeviceProfile(memory_bytes=500), DeviceProfile()).check(STAGES)


def test_a_round_is_predicted_for_devices_that_hold_the_frozen_layers() -> None:
    fleet = fleet_of(SLOW, DeviceProfile(), images=[5, 5])
    assert fleet.expected_seconds(0, STAGES[0]) == 60 / 20 + 50 / 10 + 60 / 10
    assert fleet.expected_seconds(1, STAGES[0]) == 0.0


# --- time


def test_results_take_download_training_and_upload() -> None:
    sent = result(0)
    assert fleet_of(SLOW).deliver(sent, 100) == Delivery(sent, 100 / 20 + 100 / 10 + 80 / 10)
    assert fleet_of(DeviceProfile()).deliver(sent, 10**12) == Delivery(sent, 0.0)


@pytest.mark.parametrize("late", ["drop", "send_finished_layers"])
def test_the_deadline_cuts_who_is_late_and_nobody_else(late: Any) -> None:
    """The slow device takes 5 + 10 + 8 seconds."""
    sent = result(0)
    for seconds in (23.0, 30.0):
        assert fleet_of(SLOW, deadline=Deadline(seconds, late)).deliver(sent, 100) == Delivery(sent, 23.0)
    cut = fleet_of(SLOW, deadline=Deadline(18.0, late)).deliver(sent, 100)
    assert cut.seconds == 18.0
    if late == "drop":
        assert cut.result == Failure(0, "not done after 18 s", late=True, macs=50)
    else:
        assert isinstance(cut.result, Result)
        assert (list(cut.result.parts), cut.result.macs) == (["tail"], 50)
    too_late = fleet_of(SLOW, deadline=Deadline(17.5, late)).deliver(sent, 100).result
    assert too_late == Failure(0, "not done after 17.5 s", late=True, macs=45)


def test_infinitely_fast_devices_are_late_only_by_their_transfers() -> None:
    device = DeviceProfile(down_bytes_per_second=1.0)
    fleet = fleet_of(device, deadline=Deadline(50.0, "send_finished_layers"))
    sent = result(0, macs=10**15)
    assert fleet.deliver(sent, 50) == Delivery(sent, 50.0)
    assert fleet.deliver(sent, 51) == Delivery(Failure(0, "not done after 50 s", late=True, macs=0), 50.0)
    idle = result(0, macs=0)
    assert fleet_of(SLOW, deadline=Deadline(1.0)).deliver(idle, 100).result == Failure(
        0, "not done after 1 s", late=True
    )


def test_the_clock_waits_for_the_slowest_the_deadline_or_a_minute() -> None:
    fleet = fleet_of(SLOW)
    assert [fleet.advance([3.0, 7.5, 1.0]), fleet.advance([]), fleet.advance([0.0])] == [7.5, EMPTY_ROUND_SECONDS, 0.0]
    assert fleet.now == 7.5 + EMPTY_ROUND_SECONDS
    limited = fleet_of(SLOW, deadline=Deadline(20.0))
    assert [limited.advance([20.0, 4.0]), limited.advance([4.0]), limited.advance([])] == [20.0, 4.0, 20.0]
    assert limited.now == 44.0


def test_the_clock_is_restored() -> None:
    fleet, other = fleet_of(SLOW), fleet_of(SLOW)
    fleet.advance([12.5])
    other.load_state_dict(fleet.state_dict())
    assert other.now == 12.5


# --- availability


def test_devices_are_reachable_at_their_hours() -> None:
    """Night owls, early birds and one that is always there; days have two halves."""
    fleet = fleet_of(DeviceProfile(availability=(1.0, 0.0)), DeviceProfile(availability=(0.0, 1.0)), DeviceProfile())
    seen = []
    for half_days in range(4):
        fleet.now = half_days * SECONDS_A_DAY / 2
        seen.append(fleet.reachable(np.random.default_rng(half_days)))
    assert seen == [[True, False, True], [False, True, True]] * 2


def test_availability_is_a_probability_drawn_by_seed() -> None:
    fleet = fleet_of(*[DeviceProfile(availability=0.3)] * 2000)
    first, again, other = (fleet.reachable(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert sum(first) / 2000 == pytest.approx(0.3, abs=0.05)


def test_who_is_missing_is_told_apart() -> None:
    devices = [
        DeviceProfile(memory_bytes=399),
        DeviceProfile(availability=(0.0, 1.0)),
        DeviceProfile(),
        DeviceProfile(memory_bytes=399, availability=(0.0, 1.0)),
    ]
    participation = Participation([8] * 4, 4, fleet=fleet_of(*devices))
    cohort = participation.draw(0, STAGES[:1])
    assert (cohort.participants, cohort.dropped) == ((2,), ())
    assert (cohort.ineligible, cohort.unavailable) == ((0, 3), (1,))
    nobody = Participation([8], 1, fleet=fleet_of(DeviceProfile(availability=(0.0, 1.0)))).draw(0, STAGES[:1])
    assert (nobody.participants, nobody.unavailable) == ((), (0,))


def test_without_limits_a_fleet_changes_no_cohort() -> None:
    bare = Participation([8] * 6, 3, 0.3, seed=4)
    equipped = Participation([8] * 6, 3, 0.3, fleet=fleet_of(*[DeviceProfile()] * 6), seed=4)
    assert all(bare.draw(r, STAGES[:1]) == equipped.draw(r, STAGES[:1]) for r in range(20))


# --- the forecast


@pytest.mark.parametrize(
    ("images", "expected"),
    [(0, {}), (1, {}), (2, {2: 1}), (4, {4: 1}), (5, {4: 1}), (6, {4: 1, 2: 1}), (8, {4: 2}), (11, {4: 2, 3: 1})],
)
def test_batches_of_an_epoch(images: int, expected: dict[int, int]) -> None:
    assert batches_of_epoch(images, 4) == expected


@pytest.mark.parametrize("images", [1, 4, pytest.param(11, marks=pytest.mark.slow)])
def test_forecasts_are_those_of_the_predictor_and_of_real_rounds(
    images: int, make_world: Callable[..., Any], make_model: Callable[..., Any]
) -> None:
    model = make_model()
    predictor = StepPredictor(model)
    forecast = Forecast(predictor, 2, 4)
    world = make_world(LayerWise(), rounds=3, sizes=(images, 4), epochs=2)
    for stage, report in zip(world.server.stages, world.run(3), strict=True):
        predicted = forecast(stage, images)
        assert predicted is forecast(stage, images)
        assert predicted.peak_memory_bytes == predictor(stage, max(2, min(images, 4))).peak
        others = forecast(stage, 4)
        assert report.macs == predicted.macs + others.macs
        assert report.up_bytes == others.active_bytes + (predicted.active_bytes if images > 1 else 0)
