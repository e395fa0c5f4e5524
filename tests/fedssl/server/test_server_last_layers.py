"""Rounds in which every client trains as many of the last layers as its device can."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fedssl import UnchangedMean
from fedssl.costs.prediction import StepPredictor
from fedssl.devices import DeviceProfile
from fedssl.protocol.messages import num_bytes
from layerwise import LastLayers, Stage


def choices() -> list[Stage]:
    return LastLayers().choices(LastLayers().stages(3, 3)[0])


@pytest.fixture
def devices(make_model: Callable[..., Any]) -> list[DeviceProfile]:
    """Three devices, which can train three, two and one block, to the byte."""
    predict = StepPredictor(make_model("Supervised"))
    peaks = [predict(stage, 4).peak for stage in choices()]
    assert peaks == sorted(peaks, reverse=True)
    return [DeviceProfile(memory_bytes=peak) for peak in peaks]


@pytest.fixture
def world(make_world: Callable[..., Any], devices: list[DeviceProfile]) -> Any:
    return make_world(LastLayers(), rounds=3, method="Supervised", devices=devices, aggregation=UnchangedMean())


def changed_parts(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {key.split("/")[0] for key in before if not torch.equal(before[key], after[key])}


def test_every_client_trains_and_sends_what_its_device_holds(world: Any) -> None:
    cohort = world.server.begin_round()
    assert cohort.participants == (0, 1, 2)
    head = {"tail", "head.classifier"}
    expected = [
        head | {"stem", "block.0", "block.1", "block.2"},
        head | {"block.1", "block.2"},
        head | {"block.2"},
    ]
    sent = []
    for client, parts in enumerate(expected):
        task = world.server.make_task(client)
        assert task.stage == choices()[client]
        result = world.local(task, world.clients[client])
        assert set(result.parts) == parts
        sent.append(copy.deepcopy(result))
    report = world.server.end_round(sent)
    assert report.up_bytes == sum(num_bytes(result.parts) for result in sent)
    assert [world.server.ledger.clients[c].up_bytes for c in range(3)] == [num_bytes(r.parts) for r in sent]


def test_frozen_layers_are_bit_identical_after_a_round(world: Any) -> None:
    """On the client those that it froze; on the server those that nobody trained."""
    world.server.begin_round()
    task = world.server.make_task(2)
    before = world.weights()
    world.local(task, world.clients[2])
    own = {
        f"{part}/{key}": t for part, ts in world.local.model.read(before_parts(before)).items() for key, t in ts.items()
    }
    assert changed_parts(before, own) == {"block.2", "tail", "head.classifier"}
    world.server.end_round([world.local(world.server.make_task(client), world.clients[client]) for client in (2,)])
    assert changed_parts(before, world.weights()) == {"block.2", "tail", "head.classifier"}


def before_parts(weights: dict[str, Tensor]) -> list[str]:
    return list(dict.fromkeys(key.partition("/")[0] for key in weights))


def test_layers_that_stronger_clients_changed_are_sent_again(world: Any) -> None:
    """Block 0 is frozen on the second client and trained by the first."""
    world.round()
    world.server.begin_round()
    task = world.server.make_task(1)
    assert set(task.frozen) == {"stem", "block.0"}
    for name, tensors in task.frozen.items():
        for key, tensor in tensors.items():
            assert torch.equal(tensor, world.server.model.read([name])[name][key])


def test_the_resident_model_gets_the_present_weights(make_world: Callable[..., Any], devices: Any) -> None:
    """A client alone with a fresh resident model gives what it gives in the middle of the run."""
    world = make_world(LastLayers(), rounds=3, method="Supervised", devices=devices)
    world.run(2)
    world.server.begin_round()
    tasks = [copy.deepcopy(world.server.make_task(client)) for client in range(3)]
    given = [copy.deepcopy(world.local(task, world.clients[task.client_id])) for task in tasks]
    for task, result in zip(tasks, given, strict=True):
        fresh = make_world(LastLayers(), rounds=3, method="Supervised", devices=devices)
        fresh.server.model.write({name: world.server.model.read([name])[name] for name in world.server.model.parts})
        again = fresh.local(task, world.clients[task.client_id])
        for part, tensors in result.parts.items():
            assert all(torch.equal(tensor, again.parts[part][key]) for key, tensor in tensors.items())


def test_costs_are_those_of_each_clients_own_layers(world: Any) -> None:
    world.server.begin_round()
    results = [copy.deepcopy(world.local(world.server.make_task(c), world.clients[0])) for c in range(3)]
    assert results[0].macs > results[1].macs > results[2].macs
    assert results[0].activation_bytes > results[1].activation_bytes > results[2].activation_bytes


def test_the_fleet_chooses_the_depth(make_world: Callable[..., Any], devices: Any) -> None:
    world = make_world(LastLayers([1, 3]), rounds=3, method="Supervised", devices=devices)
    world.round()
    assert world.server.model.encoder.depth == 3
    with pytest.raises(ValueError, match=r"depths \[1, 4\] reach beyond the encoder's 3 blocks"):
        make_world(LastLayers([1, 4]), rounds=3, method="Supervised")


def test_devices_that_hold_nothing_are_told(make_world: Callable[..., Any], devices: Any) -> None:
    small = [*devices[:2], DeviceProfile(memory_bytes=devices[2].memory_bytes - 1)]
    world = make_world(LastLayers(), rounds=3, method="Supervised", devices=small)
    assert world.round().ineligible == (2,)
    (found,) = world.server.participation.fleet.eligibility(world.server.cheapest_stages())
    assert (found.eligible, found.clients, found.need_bytes) == (2, 3, devices[2].memory_bytes)


def test_a_run_resumes_bit_for_bit(make_world: Callable[..., Any], devices: Any) -> None:
    settings = {"rounds": 3, "method": "Supervised", "devices": devices}
    whole, resumed = (make_world(LastLayers(), aggregation=UnchangedMean(), **settings) for _ in range(2))
    whole.run(2)
    resumed.restore(whole.checkpoint())
    assert repr(resumed.round()) == repr(whole.round())
    assert not changed_parts(resumed.weights(), whole.weights())
