"""Rounds of a private run look alike whoever answers, and an attacker learns no more than epsilon allows."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

pytest.importorskip("dp_accounting", reason="the extra fedssl[privacy] is not installed")

from benchmarks.reliability.privacy import DELTA, NoiseWhereGiven, audit, private
from fedssl.devices import Deadline, DeviceProfile
from fedssl.protocol.messages import Failure, Tensors
from fedssl.server.aggregation import PrivateMean, WeightedMean
from fedssl.server.aggregation.private_mean import epsilon_of
from layerwise import BlockPerturbation, EndToEnd, Progressive

NOTHING = [
    Failure(0, "too few", skipped=True),
    Failure(0, "not done", late=True),
    Failure(0, "RuntimeError: no memory left"),
    Failure(0, "loss nan"),
]


def moved(before: Tensors, after: Tensors) -> list[str]:
    return [key for key, tensor in before.items() if not torch.equal(tensor, after[key])]


def floating(world: Any, *parts: str) -> list[str]:
    return [
        key
        for key, tensor in world.weights().items()
        if tensor.is_floating_point() and (not parts or key.split("/")[0] in parts)
    ]


@pytest.mark.parametrize("nothing", NOTHING, ids=lambda failure: failure.reason)
def test_a_round_without_answers_gets_noise_on_every_tensor(nothing: Failure, make_world: Callable[..., Any]) -> None:
    world = make_world(EndToEnd(), aggregation=PrivateMean(1.0, 2.0, 1e-3), cohort_size=1)
    world.server.quorum = 1  # as on Flower, where a round without answers ends the run of any other rule
    before = world.weights()
    client = world.server.begin_round().participants[0]
    world.server.make_task(client)
    report = world.server.end_round([Failure(client, nothing.reason, nothing.skipped, nothing.late)])
    assert moved(before, world.weights()) == floating(world)
    assert report.round == 0
    assert world.server.round == 1


def test_layers_that_no_client_gave_get_noise(make_world: Callable[..., Any]) -> None:
    """Depth dropout: which blocks are given depends on who answers."""
    scheme = Progressive(blocks_per_stage=3, layer_budget=2)
    world = make_world(scheme, sizes=(8, 8), aggregation=PrivateMean(1.0, 2.0, 1e-3))
    tasks = [copy.deepcopy(world.server.make_task(client)) for client in world.server.begin_round().participants]
    assert not any("block.1" in task.active for task in tasks)
    before = world.weights()
    world.server.end_round([Failure(0, "gone"), world.local(tasks[1], world.clients[1])])
    assert moved(before, world.weights()) == floating(world)


def test_partial_shares_at_a_deadline_get_noise_everywhere(make_world: Callable[..., Any]) -> None:
    slow = DeviceProfile(macs_per_second=1e6)
    deadline = Deadline(0.05, "send_finished_layers")
    world = make_world(
        EndToEnd(), sizes=(8, 8), aggregation=PrivateMean(1.0, 2.0, 1e-3), devices=[slow] * 2, deadline=deadline
    )
    before = world.weights()
    world.round()
    assert moved(before, world.weights()) == floating(world)


def test_the_pace_and_the_stages_do_not_tell_who_answered(make_world: Callable[..., Any]) -> None:
    world = make_world(
        Progressive(), rounds=6, aggregation=PrivateMean(1.0, 2.0, 1e-3), cohort_size=1, pace=BlockPerturbation()
    )
    world.server.begin_round()
    assert world.server.end_round([Failure(0, "gone")]).pace is not None


def test_devices_whose_availability_follows_the_clock_are_refused(make_world: Callable[..., Any]) -> None:
    """The clock goes as far as the slowest client that answered, and says who can be reached next."""
    nightly = DeviceProfile(availability=(1.0, 0.0))
    with pytest.raises(ValueError, match="availability does not depend on the time of day"):
        make_world(EndToEnd(), aggregation=PrivateMean(1.0, 2.0, 1e-3), devices=[nightly] * 3)


@pytest.mark.parametrize("clients", [1, 2])
def test_neighbours_cannot_be_told_apart_beyond_epsilon(clients: int) -> None:
    assert audit(private(4.0), clients, 120) <= epsilon_of(4.0, 1, DELTA) < 1.1


@pytest.mark.parametrize(
    ("rule", "clients"),
    [(partial(private, 4.0, NoiseWhereGiven), 1), (WeightedMean, 2)],
    ids=["noise where given", "no noise"],
)
def test_the_attack_finds_what_is_there(rule: Any, clients: int) -> None:
    assert audit(rule(), clients, 120) > 1.5 > epsilon_of(4.0, 1, DELTA)
