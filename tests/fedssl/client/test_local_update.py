"""The local update depends on task, images and seed, and on nothing else."""

import copy
import math
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from fedssl.client.local_update import LocalUpdate
from fedssl.protocol.messages import Failure, Result, Task, flatten
from layerwise import EncoderSpec, EndToEnd, LayerWise, Progressive
from ssl_methods import TwoViews
from ssl_methods.alignment import GlobalAlignment, MoonAlignment

METHODS = ["SimCLR", "BYOL", "MoCoV3"]


def tensors_of(result: Result | Failure) -> dict[str, Tensor]:
    assert isinstance(result, Result), result
    return {key: tensor.clone() for key, tensor in flatten(result.parts).items()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [key for key in a if not torch.equal(a[key], b[key])]
    assert not different


def fresh(world: Any, make_model: Callable[..., Any], **settings: Any) -> LocalUpdate:
    """Another device with the same software; frozen parts come from the world's server."""
    model = make_model(**settings)
    local = world.local
    return LocalUpdate(
        model,
        epochs=local.epochs,
        batch_size=local.batch_size,
        seed=local.seed,
        recall=local._recall,
        step=copy.copy(local.step),
    )


# --- determinism


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scheme", [LayerWise, Progressive])
def test_the_same_task_gives_the_same_result(scheme: type[Any], method: str, make_world: Callable[..., Any]) -> None:
    world = make_world(scheme(), method=method, alignment=GlobalAlignment(), proximal=0.1)
    tasks = world.tasks()
    alone = {task.client_id: tensors_of(world.local(task, world.clients[task.client_id])) for task in tasks}
    for task in [*reversed(tasks), *tasks]:
        again = world.local(task, world.clients[task.client_id])
        assert_equal(tensors_of(again), alone[task.client_id])


@pytest.mark.parametrize("method", METHODS)
def test_a_fresh_device_gives_the_same_result(
    method: str, make_world: Callable[..., Any], make_model: Callable[..., Any]
) -> None:
    world = make_world(method=method, alignment=GlobalAlignment())
    for task in world.tasks():
        images = world.clients[task.client_id]
        first = world.local(task, images)
        expected, loss = tensors_of(first), first.loss
        other = fresh(world, make_model, method=method)(task, images)
        assert isinstance(other, Result)
        assert_equal(tensors_of(other), expected)
        assert (other.loss, other.macs, other.activation_bytes) == (loss, first.macs, first.activation_bytes)


def test_tasks_of_several_stages_can_be_mixed(make_world: Callable[..., Any], make_model: Callable[..., Any]) -> None:
    world = make_world(method="MoCoV3", alignment=GlobalAlignment())
    early, late = world.tasks(0)[0], world.tasks(2)[1]
    expected = [tensors_of(world.local(t, world.clients[t.client_id])) for t in (early, late)]
    device = fresh(world, make_model, method="MoCoV3")
    for task, outcome in [(late, 1), (early, 0), (late, 1), (early, 0)]:
        assert_equal(tensors_of(device(task, world.clients[task.client_id])), expected[outcome])


def test_dropout_inside_the_encoder_is_reproducible(make_world: Callable[..., Any], vit_spec: EncoderSpec) -> None:
    spec = EncoderSpec(vit_spec.name, 8, 1, options=vit_spec.options | {"proj_drop_rate": 0.3})
    world = make_world(EndToEnd(), spec=spec)
    task, other = world.tasks(0)[:2]
    torch.manual_seed(1)
    first = tensors_of(world.local(task, world.clients[0]))
    world.local(other, world.clients[1])
    torch.manual_seed(2)
    assert_equal(tensors_of(world.local(task, world.clients[0])), first)


def test_rounds_clients_and_seeds_draw_differently(make_world: Callable[..., Any]) -> None:
    world = make_world(EndToEnd())
    task = world.tasks(0)[0]
    variants = [
        task,
        Task(1, 0, task.stage, task.active, {}, {}),
        Task(0, 1, task.stage, task.active, {}, {}),
    ]
    weights = [tensors_of(world.local(t, world.clients[0]))["block.0/mlp.fc1.weight"] for t in variants]
    world.local.seed = 1
    weights.append(tensors_of(world.local(task, world.clients[0]))["block.0/mlp.fc1.weight"])
    assert all(not torch.equal(weights[0], other) for other in weights[1:])


def legacy_state() -> Any:
    """NumPy's global state."""
    return np.random.get_state(legacy=True)[1].copy()  # type: ignore[index]


def test_rounds_and_clients_see_their_images_in_orders_of_their_own(make_world: Callable[..., Any]) -> None:
    seen = []

    class Recording(TwoViews):
        def __call__(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            seen.append((images[:, 0, 0].tolist(), generator.initial_seed()))
            return super().__call__(images, generator)

    world = make_world(EndToEnd(), augment=Recording())
    task = world.tasks(0)[0]
    for client_id, round_ in ((0, 0), (0, 1), (1, 0), (0, 0)):
        world.local(Task(client_id, round_, task.stage, task.active, {}, {}), world.clients[0])
    first, other_round, other_client, again = seen[-4:]
    assert first == again
    for i in range(2):
        assert first[i] != other_round[i] != other_client[i] != first[i]


def test_global_random_state_is_untouched(make_world: Callable[..., Any]) -> None:
    world = make_world(method="BYOL")
    task = world.tasks(0)[0]
    random.seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), random.getstate(), legacy_state()
    world.local(task, world.clients[0])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(legacy_state(), before[2])


def test_the_task_is_not_changed(make_world: Callable[..., Any]) -> None:
    world = make_world()
    task = world.tasks()[0]
    original = copy.deepcopy(task)
    world.local(task, world.clients[0])
    assert_equal(flatten(task.active), flatten(original.active))
    assert_equal(flatten(task.frozen), flatten(original.frozen))


# --- what a result says


def test_result_has_the_tasks_tensors_and_the_number_of_images(make_world: Callable[..., Any]) -> None:
    world = make_world()
    for task in world.tasks():
        result = world.local(task, world.clients[task.client_id])
        assert (result.client_id, result.num_images) == (task.client_id, len(world.clients[task.client_id]))
        assert flatten(result.parts).keys() == flatten(task.active).keys()
        assert math.isfinite(result.loss)
        assert result.macs > 0
        assert result.activation_bytes > 0


def test_epochs_are_passes(make_world: Callable[..., Any]) -> None:
    one, three = (make_world(epochs=epochs) for epochs in (1, 3))
    macs = [world.local(world.tasks(0)[0], world.clients[0]).macs for world in (one, three)]
    assert macs[1] == 3 * macs[0]


@pytest.mark.parametrize("number", [2, 3, 4, 5])
def test_clients_smaller_than_a_batch(number: int, make_world: Callable[..., Any]) -> None:
    world = make_world(sizes=(number, 8))
    task = world.tasks(0)[0]
    result = world.local(task, world.clients[0])
    assert result.num_images == number
    assert not torch.equal(result.parts["stem"]["model.pos_embed"], task.active["stem"]["model.pos_embed"])


@pytest.mark.parametrize("number", [0, 1])
def test_too_few_images_fail(number: int, make_world: Callable[..., Any]) -> None:
    world = make_world(sizes=(number, 8))
    outcome = world.local(world.tasks(0)[0], world.clients[0])
    assert outcome == Failure(0, f"{number} images are too few to contrast", skipped=True)


# --- alignment


def test_alignment_and_proximal_term_change_the_result(make_world: Callable[..., Any]) -> None:
    results = []
    for settings in ({}, {"proximal": 1.0}, {"alignment": GlobalAlignment()}):
        world = make_world(EndToEnd(), epochs=2, **settings)
        outcome = world.local(world.tasks(0)[0], world.clients[0])
        results.append(tensors_of(outcome)["block.0/mlp.fc1.weight"])
    assert not torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_a_strong_proximal_term_holds_the_weights(make_world: Callable[..., Any]) -> None:
    distances = []
    for mu in (0.0, 30.0):
        world = make_world(EndToEnd(), proximal=mu, epochs=4, optimizer=partial(SGD, lr=0.01))
        task = world.tasks(0)[1]
        parts = flatten(world.local(task, world.clients[1]).parts)
        sent = flatten(task.active)
        keys = [key for key in sent if "running" not in key and "num_batches" not in key]
        distances.append(sum((parts[key] - sent[key]).square().sum().item() for key in keys))
    assert distances[1] < distances[0] / 2


def test_moon_remembers_by_client_within_a_stage(make_world: Callable[..., Any]) -> None:
    """The first round of a stage is as without MOON; later rounds are not."""
    with_moon = make_world(rounds=6, alignment=MoonAlignment())
    without = make_world(rounds=6)
    for round_ in range(6):
        if round_ % 2 == 0:
            without.restore(with_moon.checkpoint() | {"local": without.local.state_dict()})
        with_moon.round()
        without.round()
        equal = all(torch.equal(with_moon.weights()[k], t) for k, t in without.weights().items())
        assert equal == (round_ % 2 == 0), round_


def test_memory_of_a_client_does_not_reach_another(make_world: Callable[..., Any]) -> None:
    world = make_world(EndToEnd(), rounds=4, alignment=MoonAlignment())
    first, second = world.tasks(0)[:2]
    alone = tensors_of(world.local(second, world.clients[1]))
    world = make_world(EndToEnd(), rounds=4, alignment=MoonAlignment())
    world.local(first, world.clients[0])
    assert_equal(tensors_of(world.local(second, world.clients[1])), alone)
