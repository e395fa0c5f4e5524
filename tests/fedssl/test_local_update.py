"""The local update depends on task, images and seed, and on nothing else."""

import copy
import math
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from fedssl.alignment import GlobalAlignment, MoonAlignment
from fedssl.local_update import LocalUpdate
from fedssl.messages import Failure, Result, Task, content_id, flatten
from layerwise import EndToEnd, EncoderSpec, LayerWise, Progressive
from ssl_methods import StepOutput, TwoViews, Views

METHODS = ["SimCLR", "BYOL", "MoCoV3"]


def frozen_copy(task: Task) -> Task:
    """A task as it would arrive over a network, with memory of its own."""
    return copy.deepcopy(task)


def tensors_of(result: Result | Failure) -> dict[str, Tensor]:
    assert isinstance(result, Result), result
    return {key: tensor.clone() for key, tensor in flatten(result.parts).items()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [key for key in a if not torch.equal(a[key], b[key])]
    assert not different


def tasks_of(world: Any, rounds: int = 1) -> list[Task]:
    """The tasks of all clients in the round after ``rounds`` finished ones."""
    world.run(rounds)
    return [frozen_copy(world.server.make_task(client)) for client in world.server.begin_round().participants]


def fresh(world: Any, make_model: Callable[..., Any], **settings: Any) -> LocalUpdate:
    """Another device with the same software; frozen parts come from the world's server."""
    model = make_model(**settings)
    local = world.local
    alignment = copy.copy(local.alignment)
    return LocalUpdate(model, local.epochs, local.batch_size, alignment, local.proximal, local.seed, local._recall)


# --- determinism


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scheme", [LayerWise, Progressive])
def test_the_same_task_gives_the_same_result(scheme: type[Any], method: str, make_world: Callable[..., Any]) -> None:
    world = make_world(scheme(), method=method, alignment=GlobalAlignment(), proximal=0.1)
    tasks = tasks_of(world)
    alone = {task.client_id: tensors_of(world.local(task, world.clients[task.client_id])) for task in tasks}
    for task in [*reversed(tasks), *tasks]:
        again = world.local(task, world.clients[task.client_id])
        assert_equal(tensors_of(again), alone[task.client_id])


@pytest.mark.parametrize("method", METHODS)
def test_a_fresh_device_gives_the_same_result(
    method: str, make_world: Callable[..., Any], make_model: Callable[..., Any]
) -> None:
    world = make_world(method=method, alignment=GlobalAlignment())
    for task in tasks_of(world):
        images = world.clients[task.client_id]
        first = world.local(task, images)
        expected, loss = tensors_of(first), first.loss
        other = fresh(world, make_model, method=method)(task, images)
        assert_equal(tensors_of(other), expected)
        assert (other.loss, other.macs, other.activation_bytes) == (loss, first.macs, first.activation_bytes)


def test_tasks_of_several_stages_can_be_mixed(make_world: Callable[..., Any], make_model: Callable[..., Any]) -> None:
    world = make_world(method="MoCoV3", alignment=GlobalAlignment())
    early, late = tasks_of(world, 0)[0], tasks_of(world, 2)[1]
    expected = [tensors_of(world.local(t, world.clients[t.client_id])) for t in (early, late)]
    device = fresh(world, make_model, method="MoCoV3")
    for task, outcome in [(late, 1), (early, 0), (late, 1), (early, 0)]:
        assert_equal(tensors_of(device(task, world.clients[task.client_id])), expected[outcome])


def test_dropout_inside_the_encoder_is_reproducible(make_world: Callable[..., Any], vit_spec: EncoderSpec) -> None:
    spec = EncoderSpec(vit_spec.name, 8, 1, options=vit_spec.options | {"proj_drop_rate": 0.3})
    world = make_world(EndToEnd(), spec=spec)
    task, other = tasks_of(world, 0)[:2]
    torch.manual_seed(1)
    first = tensors_of(world.local(task, world.clients[0]))
    world.local(other, world.clients[1])
    torch.manual_seed(2)
    assert_equal(tensors_of(world.local(task, world.clients[0])), first)


def test_rounds_clients_and_seeds_draw_differently(make_world: Callable[..., Any]) -> None:
    world = make_world(EndToEnd())
    task = tasks_of(world, 0)[0]
    variants = [
        task,
        Task(1, 0, task.stage, task.active, {}, {}),
        Task(0, 1, task.stage, task.active, {}, {}),
    ]
    weights = [tensors_of(world.local(t, world.clients[0]))["block.0/mlp.fc1.weight"] for t in variants]
    world.local.seed = 1
    weights.append(tensors_of(world.local(task, world.clients[0]))["block.0/mlp.fc1.weight"])
    assert all(not torch.equal(weights[0], other) for other in weights[1:])


def test_global_random_state_is_untouched(make_world: Callable[..., Any]) -> None:
    world = make_world(method="BYOL")
    task = tasks_of(world, 0)[0]
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    world.local(task, world.clients[0])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])  # noqa: NPY002


def test_the_task_is_not_changed(make_world: Callable[..., Any]) -> None:
    world = make_world()
    task = tasks_of(world)[0]
    original = frozen_copy(task)
    world.local(task, world.clients[0])
    assert_equal(flatten(task.active), flatten(original.active))
    assert_equal(flatten(task.frozen), flatten(original.frozen))


# --- what a result says


def test_result_has_the_tasks_tensors_and_the_number_of_images(make_world: Callable[..., Any]) -> None:
    world = make_world()
    for task in tasks_of(world):
        result = world.local(task, world.clients[task.client_id])
        assert (result.client_id, result.num_images) == (task.client_id, len(world.clients[task.client_id]))
        assert flatten(result.parts).keys() == flatten(task.active).keys()
        assert math.isfinite(result.loss)
        assert result.macs > 0
        assert result.activation_bytes > 0


def test_epochs_are_passes(make_world: Callable[..., Any]) -> None:
    one, three = (make_world(epochs=epochs) for epochs in (1, 3))
    macs = [world.local(tasks_of(world, 0)[0], world.clients[0]).macs for world in (one, three)]
    assert macs[1] == 3 * macs[0]


@pytest.mark.parametrize("number", [2, 3, 4, 5])
def test_clients_smaller_than_a_batch(number: int, make_world: Callable[..., Any]) -> None:
    world = make_world(sizes=(number, 8))
    task = tasks_of(world, 0)[0]
    result = world.local(task, world.clients[0])
    assert result.num_images == number
    assert not torch.equal(result.parts["stem"]["model.pos_embed"], task.active["stem"]["model.pos_embed"])


@pytest.mark.parametrize("number", [0, 1])
def test_too_few_images_fail(number: int, make_world: Callable[..., Any]) -> None:
    world = make_world(sizes=(number, 8))
    outcome = world.local(tasks_of(world, 0)[0], world.clients[0])
    assert outcome == Failure(0, f"{number} images are too few to contrast")


# --- frozen parts


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_frozen_parts_stay_bit_for_bit(
    kind: str, make_world: Callable[..., Any], vit_spec: EncoderSpec, resnet_spec: EncoderSpec
) -> None:
    spec = {"vit": vit_spec, "resnet": resnet_spec}[kind]
    world = make_world(rounds=12, sizes=(9, 8), spec=spec)
    frozen: set[str] = set()

    def trained(participants: tuple[int, ...]) -> Iterator[Result | Failure]:
        for client in participants:
            task = world.server.make_task(client)
            yield world.local(task, world.clients[client])
            held = world.local.model.read(task.frozen_ids)
            assert {name: content_id(held[name]) for name in held} == task.frozen_ids
            frozen.update(held)

    for _ in range(12):
        world.server.absorb(trained(world.server.begin_round().participants))
    assert frozen == {"stem", *(f"block.{i}" for i in range(len(world.server.stages) - 1))}


def test_recall_gives_the_parts_that_were_not_sent(
    make_world: Callable[..., Any], make_model: Callable[..., Any]
) -> None:
    world = make_world()
    task = tasks_of(world, 2)[0]
    expected = tensors_of(world.local(task, world.clients[0]))
    asked = []

    def recall(name: str, content: str) -> dict[str, Tensor]:
        asked.append((name, content))
        return world.server.model.read([name])[name]

    device = LocalUpdate(make_model(), 1, 4, None, 0.0, 0, recall)
    partly = Task(0, task.round, task.stage, task.active, task.frozen_ids, {})
    assert_equal(tensors_of(device(partly, world.clients[0])), expected)
    assert asked == list(task.frozen_ids.items())
    assert {name for name, _ in asked} == {"stem", "block.0", "block.1"}
    device(partly, world.clients[0])
    assert len(asked) == 3


def test_sent_parts_are_not_recalled(make_world: Callable[..., Any], make_model: Callable[..., Any]) -> None:
    def recall(name: str, content: str) -> dict[str, Tensor]:
        raise AssertionError(name)

    world = make_world()
    world.run(2)
    world.server.begin_round()
    world.server._holdings.clear()
    task = frozen_copy(world.server.make_task(0))
    assert task.frozen.keys() == task.frozen_ids.keys()
    device = LocalUpdate(make_model(), 1, 4, None, 0.0, 0, recall)
    assert isinstance(device(task, world.clients[0]), Result)


def test_other_content_replaces_a_loaded_part(make_world: Callable[..., Any]) -> None:
    world = make_world()
    task = tasks_of(world, 1)[0]
    world.local(task, world.clients[0])
    stem = {name: tensor + 1 for name, tensor in world.local.model.read(["stem"])["stem"].items()}
    changed = Task(0, 1, task.stage, task.active, task.frozen_ids | {"stem": content_id(stem)}, {"stem": stem})
    world.local(changed, world.clients[0])
    assert content_id(world.local.model.read(["stem"])["stem"]) == content_id(stem)


def test_prefix_gets_no_gradient_and_no_optimizer_state(make_world: Callable[..., Any]) -> None:
    seen = []

    def recording(parameters: Any) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW(parameters, lr=1e-3)
        seen.append({id(p) for group in optimizer.param_groups for p in group["params"]})
        return optimizer

    world = make_world(optimizer=recording)
    world.local(tasks_of(world, 2)[0], world.clients[0])
    model = world.local.model
    active = [*model.encoder.blocks[2].parameters(), *model.encoder.tail.parameters()]
    active += list(model.method.projector.parameters())
    assert seen[-1] == {id(parameter) for parameter in active}
    frozen = [*model.encoder.stem.parameters(), *model.encoder.blocks[:2].parameters()]
    assert all(parameter.grad is None for parameter in frozen)


# --- alignment


def test_alignment_and_proximal_term_change_the_result(make_world: Callable[..., Any]) -> None:
    results = []
    for settings in ({}, {"proximal": 1.0}, {"alignment": GlobalAlignment()}):
        world = make_world(EndToEnd(), epochs=2, **settings)
        outcome = world.local(tasks_of(world, 0)[0], world.clients[0])
        results.append(tensors_of(outcome)["block.0/mlp.fc1.weight"])
    assert not torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_a_strong_proximal_term_holds_the_weights(make_world: Callable[..., Any]) -> None:
    distances = []
    for mu in (0.0, 5.0, 30.0):
        world = make_world(EndToEnd(), proximal=mu, epochs=4, optimizer=partial(SGD, lr=0.01))
        task = tasks_of(world, 0)[1]
        parts = flatten(world.local(task, world.clients[1]).parts)
        sent = flatten(task.active)
        keys = [key for key in sent if "running" not in key and "num_batches" not in key]
        distances.append(sum((parts[key] - sent[key]).square().sum().item() for key in keys))
    assert distances == sorted(distances, reverse=True)
    assert distances[2] < distances[0] / 2


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
    first, second = tasks_of(world, 0)[:2]
    alone = tensors_of(world.local(second, world.clients[1]))
    world = make_world(EndToEnd(), rounds=4, alignment=MoonAlignment())
    world.local(first, world.clients[0])
    assert_equal(tensors_of(world.local(second, world.clients[1])), alone)


# --- failures


@pytest.fixture
def fragile(methods: dict[str, Any]) -> Callable[[str], Any]:
    """Methods whose loss is NaN for white images."""

    def make(method: str) -> Any:
        base = methods[method]

        class Fragile(base.func):  # type: ignore[misc, name-defined]
            def step(self, hidden: Views) -> StepOutput:
                output = super().step(hidden)
                factor = math.nan if hidden[0].amin() == 1.0 else 1.0
                return StepOutput(output.loss * factor, output.projections)

        return partial(Fragile, **base.keywords)

    return make


@pytest.mark.parametrize("method", METHODS)
def test_a_nan_loss_fails_and_the_next_client_is_unaffected(
    method: str, fragile: Callable[[str], Any], make_world: Callable[..., Any]
) -> None:
    settings: dict[str, Any] = {
        "method": fragile(method),
        "augment": TwoViews(),
        "alignment": MoonAlignment(),
        "proximal": 0.1,
        "rounds": 6,
    }
    world = make_world(EndToEnd(), **settings)
    tasks = tasks_of(world, 1)
    expected = tensors_of(world.local(tasks[2], world.clients[2]))

    world = make_world(EndToEnd(), **settings)
    tasks = tasks_of(world, 1)
    world.clients[1].images.fill_(255)
    failure = world.local(tasks[1], world.clients[1])
    assert isinstance(failure, Failure)
    assert failure.client_id == 1
    assert failure.reason.startswith("loss nan after")
    assert_equal(tensors_of(world.local(tasks[2], world.clients[2])), expected)


def test_a_failed_client_keeps_its_memory(fragile: Callable[[str], Any], make_world: Callable[..., Any]) -> None:
    world = make_world(EndToEnd(), rounds=6, method=fragile("SimCLR"), augment=TwoViews(), alignment=MoonAlignment())
    tasks = tasks_of(world, 1)
    before = copy.deepcopy(world.local.state_dict()["memories"][1])
    white = copy.copy(world.clients[1])
    white.images = torch.full_like(white.images, 255)
    world.local(tasks[1], white)
    after = world.local.state_dict()["memories"][1]
    assert before[0] == after[0]
    assert all(torch.equal(a, b) for a, b in zip(before[1], after[1], strict=True))
