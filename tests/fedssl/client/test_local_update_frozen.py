"""Frozen parts on a client: never trained, received once, recalled otherwise."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fedssl.client.local_update import LocalUpdate
from fedssl.protocol.messages import Failure, Result, Task, content_id, flatten
from layerwise import EncoderSpec


def tensors_of(result: Result | Failure) -> dict[str, Tensor]:
    assert isinstance(result, Result), result
    return {key: tensor.clone() for key, tensor in flatten(result.parts).items()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [key for key in a if not torch.equal(a[key], b[key])]
    assert not different


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
        world.server.end_round(trained(world.server.begin_round().participants))
    assert frozen == {"stem", *(f"block.{i}" for i in range(len(world.server.stages) - 1))}


def test_recall_gives_the_parts_that_were_not_sent(
    make_world: Callable[..., Any], make_model: Callable[..., Any]
) -> None:
    world = make_world()
    task = world.tasks(2)[0]
    expected = tensors_of(world.local(task, world.clients[0]))
    asked = []

    def recall(name: str, content: str) -> dict[str, Tensor]:
        asked.append((name, content))
        return world.server.model.read([name])[name]

    device = LocalUpdate(make_model(), epochs=1, batch_size=4, seed=0, recall=recall)
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
    world.server.holdings.replace(0, {})
    task = copy.deepcopy(world.server.make_task(0))
    assert task.frozen.keys() == task.frozen_ids.keys()
    device = LocalUpdate(make_model(), epochs=1, batch_size=4, seed=0, recall=recall)
    assert isinstance(device(task, world.clients[0]), Result)


def test_other_content_replaces_a_loaded_part(make_world: Callable[..., Any]) -> None:
    world = make_world()
    task = world.tasks(1)[0]
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
    world.local(world.tasks(2)[0], world.clients[0])
    model = world.local.model
    active = [*model.encoder.blocks[2].parameters(), *model.encoder.tail.parameters()]
    active += list(model.method.projector.parameters())
    assert seen[-1] == {id(parameter) for parameter in active}
    frozen = [*model.encoder.stem.parameters(), *model.encoder.blocks[:2].parameters()]
    assert all(parameter.grad is None for parameter in frozen)
