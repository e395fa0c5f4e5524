"""Whole federations with a memory budget."""

from collections.abc import Callable
from math import inf
from typing import Any

import pytest
import torch
from torch import Tensor

from fedssl.data.images import FederatedData
from fedssl.devices import DeviceClasses
from fedssl.memory_budget import planner
from fedssl.memory_budget.setting import MemoryBudget
from fedssl.protocol.messages import flatten
from fedssl.server.calibration import Calibration
from fedssl.server.rounds import RoundReport
from fedssl.training.federated import FederatedSSL
from fedssl.training.process_engine import ProcessEngine
from layerwise import EndToEnd, LayerWise, Progressive
from ssl_methods.alignment import MoonAlignment

Run = Callable[..., FederatedSSL]


def play(run: FederatedSSL, data: FederatedData, rounds: int = 2) -> list[RoundReport]:
    """Rounds without a Trainer."""
    if run.federation is None:
        run.prepare(data)
    assert run.federation is not None
    ranks = ProcessEngine(run.federation.client, data.datasets.clients)
    return [run.federation.round(ranks) for _ in range(rounds)]


def weights(run: FederatedSSL) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in flatten(run.model.read(run.model.parts)).items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture
def sizes(make_planner: Callable[..., planner.ActivationPlanner]) -> tuple[int, int]:
    """The least and the whole memory of an end-to-end step."""
    steps, stage = make_planner(), EndToEnd().stages(2, 1)[0]
    return steps.min_peak(stage, 16), steps.peak_without_plan(stage, 16)


@pytest.mark.parametrize("text", ["-3MiB", "300", "0B", "much", ""])
def test_what_is_no_budget_is_refused(text: str, make_run: Run) -> None:
    with pytest.raises(ValueError, match="memory_budget must be a size, 'device'"):
        make_run(memory_budget=text)


def test_device_needs_devices(make_run: Run) -> None:
    with pytest.raises(ValueError, match=r"needs devices.*model\.devices"):
        make_run(memory_budget="device")


def test_no_budget_is_no_limit() -> None:
    assert MemoryBudget.parse(None, None).size == inf


def test_an_impossible_budget_is_refused_before_training(make_run: Run, digits: FederatedData) -> None:
    with pytest.raises(ValueError, match="too small for stage 1 with 16 images a step"):
        make_run(memory_budget="100KiB").prepare(digits)


def test_a_budget_above_the_need_changes_nothing(make_run: Run, digits: FederatedData) -> None:
    free, bounded = make_run(), make_run(memory_budget="1GiB")
    assert play(free, digits) == play(bounded, digits)
    assert same(weights(free), weights(bounded))


@pytest.mark.slow
def test_recomputing_saves_activations_and_changes_no_weight(
    make_run: Run, digits: FederatedData, sizes: tuple[int, int]
) -> None:
    least, whole = sizes
    free, bounded = make_run(), make_run(memory_budget=f"{(least + 2 * whole) // 3}B")
    reports = [play(run, digits)[-1] for run in (free, bounded)]
    assert same(weights(free), weights(bounded))
    assert reports[1].activation_bytes < reports[0].activation_bytes - (whole - least) // 4
    assert reports[1].macs >= reports[0].macs


@pytest.mark.slow
def test_compressing_changes_weights_little_and_a_resumed_run_goes_on_bit_for_bit(
    make_run: Run, digits: FederatedData
) -> None:
    free, *bounded = make_run(), *(make_run(memory_budget="8 bits") for _ in range(3))
    whole, broken, resumed = bounded
    for run, rounds in ((free, 2), (whole, 2), (broken, 1)):
        play(run, digits, rounds)
    resumed.prepare(digits)
    own = flatten(resumed.model.read(resumed.model.parts))
    for key, tensor in weights(broken).items():
        own[key].copy_(tensor)
    assert broken.federation
    assert resumed.federation
    resumed.federation.server.load_state_dict(broken.federation.server.state_dict())
    resumed.federation.client.load_state_dict(broken.federation.client.state_dict())
    play(resumed, digits, 1)
    assert same(weights(whole), weights(resumed))
    assert not same(weights(whole), weights(free))
    for key, tensor in weights(free).items():
        torch.testing.assert_close(weights(whole)[key], tensor, atol=2e-2, rtol=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"scheme": LayerWise()},
        {"scheme": Progressive(rounds_per_stage=[1, 1])},
        {"alignment": MoonAlignment(), "proximal": 0.1},
        {"calibration": Calibration(1, 16)},
    ],
    ids=["layer-wise", "progressive", "moon", "calibration"],
)
def test_it_composes(settings: dict[str, Any], make_run: Run) -> None:
    data = FederatedData(clients=2, train_images=40, image_size=16, seed=0, auxiliary_fraction=0.2)
    data.setup("fit")
    run = make_run(**settings)
    run.prepare(data)
    assert run.federation
    federation = run.federation
    needs = [federation.forecast(stage, 16).peak_memory_bytes for stage in federation.server.cheapest_stages()]
    bounded = make_run(**settings, memory_budget=f"{int(0.85 * max(needs))}B")
    reports = play(bounded, data)
    assert all(len(report.trained) == 2 and not report.failures for report in reports)
    assert max(r.activation_bytes for r in reports) < max(r.activation_bytes for r in play(run, data))


@pytest.mark.slow
def test_a_fleet_with_too_little_memory_takes_part(
    make_run: Run, digits: FederatedData, sizes: tuple[int, int]
) -> None:
    least, whole = sizes
    memories = (whole, (least + whole) // 2, least)
    devices = DeviceClasses([{"memory": f"{memory}B", "count": 1} for memory in memories])
    dropping, adapting = make_run(devices=devices), make_run(devices=devices, memory_budget="device")
    assert play(dropping, digits)[-1].ineligible == (1, 2)
    reports = play(adapting, digits)
    assert reports[-1].trained == (0, 1, 2)
    assert reports[-1].ineligible == ()
    smaller = DeviceClasses([{"memory": f"{memory}B", "count": 1} for memory in (whole, whole, least - 1)])
    assert play(make_run(devices=smaller, memory_budget="device"), digits)[-1].ineligible == (2,)


def test_rounds_without_enough_memory_are_sat_out(make_run: Run, digits: FederatedData, sizes: tuple[int, int]) -> None:
    trace = [f"{memory}B" for memory in (2 * sizes[1], 2 * sizes[1], sizes[0] // 2)]
    reports = play(make_run(memory_budget=trace, rounds=3), digits, 3)
    assert [len(report.trained) for report in reports] == [3, 3, 0]
    assert all(failure.skipped and "too small" in failure.reason for failure in reports[2].failures)
