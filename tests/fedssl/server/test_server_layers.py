"""Depth dropout: layers that not every client holds."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from fedssl.devices import Deadline, DeviceProfile
from fedssl.protocol.messages import Failure, Task, num_bytes
from layerwise import EncoderSpec, LayerWise, Progressive

FIVE = EncoderSpec(
    "vit_tiny_patch16_224",
    8,
    1,
    "sincos",
    {"patch_size": 4, "depth": 5, "embed_dim": 8, "num_heads": 2, "global_pool": "avg", "class_token": False},
)


def changed_parts(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {key.split("/")[0] for key in before if not torch.equal(before[key], after[key])}


def skip_to_stage(world: Any, index: int) -> None:
    """Rounds without training, up to the first one of a stage."""
    while world.server.stage.index < index:
        world.server.begin_round()
        world.server.end_round([])


def tasks_of(world: Any) -> list[Task]:
    return [world.server.make_task(client) for client in world.server.begin_round().participants]


def kept(result: Any) -> Any:
    """A result with memory of its own."""
    return replace(result, parts={part: {k: t.clone() for k, t in own.items()} for part, own in result.parts.items()})


def blocks(names: Any) -> tuple[int, ...]:
    return tuple(int(name.partition(".")[2]) for name in names if name.startswith("block."))


def test_clients_get_the_layers_of_their_own_draw(make_world: Callable[..., Any]) -> None:
    """Stage 5 of 5 with three layers a client: the first, the last, and one of the other three."""
    world = make_world(LayerWise(layer_budget=3), rounds=5, spec=FIVE)
    for stage in range(5):
        for task in tasks_of(world):
            held = blocks(task.frozen_ids)
            assert task.stage.present == (*held, stage)
            assert blocks(task.active) == (stage,) == task.stage.trained
            assert len(task.stage.present) == min(stage + 1, 3)
            assert task.stage.present[0] == 0
            assert list(held) == sorted(held)
        world.server.end_round([])


def test_draws_differ_between_clients_and_rounds_but_not_between_runs(make_world: Callable[..., Any]) -> None:
    def drawn(seed: int) -> list[tuple[int, ...]]:
        world = make_world(LayerWise(layer_budget=3), rounds=50, spec=FIVE, sizes=(4,) * 4, seed=seed)
        skip_to_stage(world, 4)
        found = []
        for _ in range(10):
            found += [task.stage.present for task in tasks_of(world)]
            world.server.end_round([])
        return found

    first, again, other = (drawn(seed) for seed in (1, 1, 2))
    assert first == again != other
    by_round = [first[i : i + 4] for i in range(0, 40, 4)]
    assert any(len(set(clients)) > 1 for clients in by_round)
    assert len({clients[0] for clients in by_round}) > 1


@pytest.mark.parametrize("scheme", [LayerWise, Progressive])
def test_draws_are_uniform_over_clients_and_rounds(scheme: Any, make_world: Callable[..., Any]) -> None:
    """Two of blocks 2 to 4 stay beside the first and the last: three pairs, as likely as each other."""
    world = make_world(scheme(layer_budget=4), rounds=5 * 60, spec=FIVE, sizes=(4,) * 10)
    skip_to_stage(world, 4)
    counts: Counter[tuple[int, ...]] = Counter()
    for _ in range(60):
        counts.update(task.stage.present for task in tasks_of(world))
        world.server.end_round([])
    assert counts.keys() == {(0, *pair, 4) for pair in combinations((1, 2, 3), 2)}
    assert all(abs(count - 200) < 4 * math.sqrt(600 * 2 / 9) for count in counts.values())


def test_traffic_is_what_each_client_lacks(make_world: Callable[..., Any]) -> None:
    """A client that drew a layer before holds it still; layers do not change once frozen."""
    world = make_world(LayerWise(layer_budget=3), rounds=20, spec=FIVE)
    size = {name: num_bytes(world.server.model.read([name])) for name in world.server.model.parts}
    held: dict[int, set[str]] = {client: set() for client in range(3)}
    down = dict.fromkeys(range(3), 0)
    for _ in range(20):
        cohort, total, up = world.server.begin_round(), 0, 0
        results = []
        for client in cohort.participants:
            task = world.server.make_task(client)
            needed = {"stem"} | {f"block.{i}" for i in task.stage.frozen} if task.stage.index else set()
            assert task.frozen.keys() == needed - held[client]
            active = [f"block.{task.stage.index}", "tail", "head.projector"] + ["stem"] * (task.stage.index == 0)
            assert set(task.active) == set(active)
            sent = sum(size[name] for name in [*task.frozen, *active])
            total, up, down[client] = total + sent, up + sum(size[name] for name in active), down[client] + sent
            held[client] |= needed
            results.append(kept(world.local(task, world.clients[client])))
        report = world.server.end_round(results)
        assert (report.down_bytes, report.up_bytes) == (total, up)
    assert {client: cost.down_bytes for client, cost in world.server.ledger.clients.items()} == down


def test_layer_wise_training_with_a_budget_trains_the_active_block_on_short_prefixes(
    make_world: Callable[..., Any],
) -> None:
    full, budgeted = (make_world(LayerWise(layer_budget=b), rounds=5, spec=FIVE) for b in (None, 3))
    for stage in range(5):
        before = budgeted.weights()
        reports = [world.round() for world in (full, budgeted)]
        stem = {"stem"} if stage == 0 else set()
        assert changed_parts(before, budgeted.weights()) == {f"block.{stage}", "tail", "head.projector"} | stem
        assert (reports[1].macs < reports[0].macs) == (stage > 2)
        assert reports[1].up_bytes == reports[0].up_bytes
    assert budgeted.server.model.encoder.depth == 5


def test_a_budget_of_all_layers_changes_nothing(make_world: Callable[..., Any]) -> None:
    worlds = [make_world(LayerWise(layer_budget=budget), rounds=3) for budget in (None, 3)]
    assert repr(worlds[0].run(3)) == repr(worlds[1].run(3))
    assert not changed_parts(worlds[0].weights(), worlds[1].weights())


@pytest.mark.parametrize("server_optimizer", [partial(SGD, lr=1.0), partial(SGD, lr=1.0, momentum=0.9)])
def test_each_block_is_averaged_over_those_who_had_it(server_optimizer: Any, make_world: Callable[..., Any]) -> None:
    """Progressive training with three of five layers a client; in some round some layer is nobody's."""
    world = make_world(
        Progressive(layer_budget=3), rounds=30, spec=FIVE, sizes=(4, 9), server_optimizer=server_optimizer
    )
    skip_to_stage(world, 4)
    nobodys = 0
    for round_ in range(6):
        before = world.weights()
        results = [kept(result) for result in world.results(world.server.begin_round())]
        assert all(len(blocks(result.parts)) == 3 for result in results)
        world.server.end_round(results)
        after = world.weights()
        for key, old in before.items():
            part, _, name = key.partition("/")
            givers = [result for result in results if part in result.parts]
            if not givers:
                nobodys += 1
                assert torch.equal(after[key], old), key
            elif old.is_floating_point() and round_ == 0:
                total = sum(result.num_images for result in givers)
                mean = sum(result.num_images * result.parts[part][name].double() for result in givers) / total
                assert torch.allclose(after[key].double(), mean, rtol=0, atol=1e-6), key
    assert nobodys


@pytest.mark.parametrize("scheme", [LayerWise(layer_budget=2), Progressive(layer_budget=2)])
def test_a_client_that_diverges_is_left_out(scheme: Any, make_world: Callable[..., Any]) -> None:
    world = make_world(scheme, rounds=3)
    world.run(2)
    results = [kept(result) for result in world.results(world.server.begin_round())]
    next(iter(results[1].parts["block.2"].values())).fill_(math.nan)
    report = world.server.end_round(results)
    assert report.trained == (0, 2)
    assert [failure.client_id for failure in report.failures] == [1]
    assert "block.2/" in report.failures[0].reason
    assert all(tensor.isfinite().all() for tensor in world.weights().values())


def test_layers_that_were_not_the_clients_are_refused(make_world: Callable[..., Any]) -> None:
    world = make_world(Progressive(layer_budget=2), rounds=3)
    skip_to_stage(world, 2)
    world.server.begin_round()
    result = world.local(world.server.make_task(0), world.clients[0])
    assert blocks(result.parts) == (0, 2)
    more = replace(result, parts=result.parts | world.server.model.read(["block.1"]))
    other = replace(result, client_id=1, parts={n: p for n, p in more.parts.items() if n != "block.0"})
    world.server.make_task(1)
    reason = "its update has other tensors than its task"
    world.server.make_task(2)
    third = world.local(world.server.make_task(2), world.clients[2])
    report = world.server.end_round([more, other, third])
    assert report.failures == (Failure(0, reason), Failure(1, reason))
    assert report.trained == (2,)


def test_depth_dropout_and_late_clients_together(make_world: Callable[..., Any]) -> None:
    """A late client gives the last of its own layers."""
    devices = [DeviceProfile(), DeviceProfile(macs_per_second=1e6)]
    plain = make_world(Progressive(layer_budget=3), rounds=5, spec=FIVE, sizes=(4, 4))
    skip_to_stage(plain, 4)
    macs = plain.round().macs / 2
    deadline = Deadline(macs / 1e6 * 0.7, "send_finished_layers")
    world = make_world(
        Progressive(layer_budget=3), rounds=5, spec=FIVE, sizes=(4, 4), devices=devices, deadline=deadline
    )
    skip_to_stage(world, 4)
    report = world.round()
    assert (report.trained, report.failures, report.late) == ((0, 1), (), ())
    assert world.server.current.asked[1][0] == "stem"
    given = world.server.current.asked[1][-int(0.7 * len(world.server.current.asked[1])) :]
    assert world.server.ledger.clients[1].up_bytes == num_bytes(world.server.model.read(given))
