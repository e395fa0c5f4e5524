"""Rounds that end at a deadline: what late clients give, and what they are booked for."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from fedssl.devices import Deadline, DeviceProfile
from fedssl.protocol.messages import Failure, Result, num_bytes
from fedssl.server.aggregation import StragglerMean
from fedssl.server.server import AllClientsFailedError
from layerwise import EndToEnd, LayerWise

FAST = DeviceProfile("fast")
SPEED = 1e6


def slow(**fields: Any) -> DeviceProfile:
    return DeviceProfile("slow", macs_per_second=SPEED, **fields)


def changed_parts(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {key.split("/")[0] for key in before if not torch.equal(before[key], after[key])}


def kept_results(world: Any) -> list[Any]:
    return [copy.deepcopy(result) for result in world.results(world.server.begin_round())]


def whole_round(make_world: Callable[..., Any], **settings: Any) -> Any:
    """The report and the clients' results of a first round without a deadline."""
    world = make_world(EndToEnd(), rounds=3, **settings)
    results = kept_results(world)
    return world.server.end_round(results), results


@pytest.mark.parametrize("late", ["drop", "send_finished_layers"])
def test_a_deadline_that_all_keep_changes_nothing_but_the_clock(late: Any, make_world: Callable[..., Any]) -> None:
    plain = make_world(EndToEnd(), rounds=2)
    limited = make_world(EndToEnd(), rounds=2, devices=[FAST, slow(), slow()], deadline=Deadline(1e6, late))
    for before, after in zip(plain.run(2), limited.run(2), strict=True):
        assert before.seconds is None
        assert after.seconds is not None
        assert replace(after, seconds=None) == before
    assert not changed_parts(plain.weights(), limited.weights())


def test_dropped_clients_count_as_if_they_had_not_been_there(
    make_world: Callable[..., Any], plan_cohorts: Callable[..., None]
) -> None:
    whole, results = whole_round(make_world)
    plan_cohorts((0, 1, 2), (0, 2))
    deadline = Deadline(results[1].macs / SPEED / 2)
    late = make_world(EndToEnd(), devices=[FAST, slow(), FAST], deadline=deadline)
    without = make_world(EndToEnd())
    report = late.round()
    without.round()
    assert not changed_parts(late.weights(), without.weights())
    assert report.trained == (0, 2)
    assert report.failures == ()
    spent = report.late[0].macs
    assert spent == pytest.approx(results[1].macs / 2, abs=1)
    assert report.late == (Failure(1, f"not done after {deadline.seconds:g} s", late=True, macs=spent),)
    assert report.seconds == deadline.seconds
    assert report.down_bytes == whole.down_bytes
    assert report.up_bytes == whole.up_bytes * 2 / 3
    assert report.macs == results[0].macs + spent + results[2].macs
    cost = late.server.ledger.clients[1]
    assert (cost.rounds, cost.up_bytes, cost.macs) == (0, 0, spent)
    assert cost.down_bytes == whole.down_bytes / 3
    assert late.server.failed_updates == 0


def test_late_clients_send_their_last_layers(make_world: Callable[..., Any]) -> None:
    """Six parts travel; a client with half of its training done gives the last three of them."""
    _, results = whole_round(make_world)
    names = list(results[1].parts)
    assert names == ["stem", "block.0", "block.1", "block.2", "tail", "head.projector"]
    deadline = Deadline(results[1].macs / SPEED / 2 * 1.0001, "send_finished_layers")
    world = make_world(EndToEnd(), devices=[FAST, slow(), FAST], deadline=deadline)
    before = world.weights()
    report = world.round()
    assert (report.trained, report.late, report.failures) == ((0, 1, 2), (), ())
    sent = {name: results[1].parts[name] for name in names[3:]}
    cost = world.server.ledger.clients[1]
    assert (cost.rounds, cost.up_bytes) == (1, num_bytes(sent))
    assert cost.macs == pytest.approx(results[1].macs / 2, rel=1e-3)
    assert report.up_bytes == num_bytes(sent) + num_bytes(results[0].parts) + num_bytes(results[2].parts)
    after = world.weights()
    for key, old in before.items():
        part, _, name = key.partition("/")
        givers = [result for result in results if result is not results[1] or part in sent]
        if old.is_floating_point():
            total = sum(result.num_images for result in givers)
            mean = sum(result.num_images * result.parts[part][name].double() for result in givers) / total
            assert torch.allclose(after[key].double(), mean, rtol=0, atol=1e-6), key
        else:
            assert after[key] == max(result.parts[part][name] for result in givers)


@pytest.mark.parametrize("rule", ["contributors", "all"])
@pytest.mark.parametrize(
    "optimizer", [partial(SGD, lr=1.0), partial(SGD, lr=1.0, momentum=0.9, weight_decay=0.1)], ids=["FedAvg", "FedAvgM"]
)
def test_layers_that_nobody_finished_are_the_same_bits(
    rule: Any, optimizer: Any, make_world: Callable[..., Any]
) -> None:
    """All are late with half of their work, and momentum must not move what they lack."""
    _, results = whole_round(make_world, sizes=(4, 4, 4))
    limits = [Deadline(1e9), Deadline(results[0].macs / SPEED / 2 * 1.0001, "send_finished_layers")]
    world = make_world(
        EndToEnd(),
        sizes=(4, 4, 4),
        devices=[slow()] * 3,
        deadline=limits[0],
        aggregation=StragglerMean(rule),
        server_optimizer=optimizer,
    )
    world.round()
    world.server.participation.fleet.deadline = limits[1]
    before = world.weights()
    report = world.round()
    assert report.trained == (0, 1, 2)
    assert changed_parts(before, world.weights()) == {"block.2", "tail", "head.projector"}


def test_if_all_are_late_the_round_is_empty_and_no_error(make_world: Callable[..., Any]) -> None:
    deadline = Deadline(1e-6)
    world = make_world(EndToEnd(), devices=[slow()] * 3, deadline=deadline, server_optimizer=partial(SGD, lr=1.0))
    before, steps = world.weights(), []
    report = world.round(lambda: steps.append(1))
    assert (report.trained, report.failures) == ((), ())
    assert [late.client_id for late in report.late] == [0, 1, 2]
    assert math.isnan(report.loss)
    assert (report.seconds, len(steps)) == (deadline.seconds, 1)
    assert report.down_bytes > 0 == report.up_bytes
    assert not changed_parts(before, world.weights())
    assert world.server.round == 1


def test_rounds_in_which_all_are_late_count_for_their_stage(make_world: Callable[..., Any]) -> None:
    world = make_world(LayerWise(), devices=[slow()] * 3, deadline=Deadline(1e-6))
    assert [report.stage for report in world.run(3)] == [0, 1, 2]
    assert world.server.done
    assert world.server.stage_rounds == [1, 1, 1]
    assert world.server.participation.fleet.now == pytest.approx(3e-6)


@pytest.mark.parametrize("late", ["drop", "send_finished_layers"])
def test_broken_layers_that_never_arrived_do_no_harm(late: Any, make_world: Callable[..., Any]) -> None:
    """The stem of a late client is not finite; nobody ever sees it."""
    _, results = whole_round(make_world)
    deadline = Deadline(results[1].macs / SPEED / 2 * 1.0001, late)
    world = make_world(EndToEnd(), devices=[FAST, slow(), FAST], deadline=deadline)
    sent = kept_results(world)
    sent[1].parts["stem"]["model.pos_embed"].fill_(math.nan)
    report = world.server.end_round(sent)
    assert report.failures == ()
    assert report.trained == ((0, 2) if late == "drop" else (0, 1, 2))
    assert all(tensor.isfinite().all() for tensor in world.weights().values())


def test_a_late_client_with_a_broken_last_layer_fails(make_world: Callable[..., Any]) -> None:
    _, results = whole_round(make_world)
    deadline = Deadline(results[1].macs / SPEED / 2 * 1.0001, "send_finished_layers")
    world = make_world(EndToEnd(), devices=[FAST, slow(), FAST], deadline=deadline)
    sent = kept_results(world)
    sent[1].parts["tail"]["fc_norm.bias"].fill_(math.nan)
    report = world.server.end_round(sent)
    assert report.failures == (Failure(1, "tail/fc_norm.bias is not finite"),)
    assert (report.trained, report.late, report.seconds) == ((0, 2), (), deadline.seconds)


SPOILS: dict[str, Callable[[Any], Any]] = {
    "suffix": lambda parts: {name: parts[name] for name in list(parts)[3:]},
    "more": lambda parts: parts | {"other": parts["tail"]},
    "reversed": lambda parts: {name: parts[name] for name in reversed(parts)},
    "nothing": lambda parts: {},
}


@pytest.mark.parametrize(
    ("share", "spoil"), [(2.0, "suffix"), (2.0, "more"), (2.0, "nothing"), (0.5001, "more"), (0.5001, "reversed")]
)
def test_wrong_parts_are_refused_late_or_not(share: float, spoil: str, make_world: Callable[..., Any]) -> None:
    """A suffix is welcome from late clients only, and only the network's last layers."""
    _, results = whole_round(make_world)
    deadline = Deadline(results[1].macs / SPEED * share, "send_finished_layers")
    world = make_world(EndToEnd(), devices=[FAST, slow(), FAST], deadline=deadline)
    sent = kept_results(world)
    sent[1] = replace(sent[1], parts=SPOILS[spoil](sent[1].parts))
    report = world.server.end_round(sent)
    assert report.failures == (Failure(1, "its update has other tensors than its task"),)
    assert report.trained == (0, 2)


def test_a_client_that_was_not_asked_is_refused(
    make_world: Callable[..., Any], plan_cohorts: Callable[..., None]
) -> None:
    plan_cohorts((0, 2))
    world = make_world(EndToEnd(), devices=[FAST] * 3)
    results = kept_results(world)
    report = world.server.end_round([results[0], replace(results[1], client_id=1)])
    assert report.failures == (Failure(1, "its update has other tensors than its task"),)
    assert report.trained == (0,)


def test_a_bad_update_takes_its_time(make_world: Callable[..., Any]) -> None:
    _, results = whole_round(make_world)
    world = make_world(EndToEnd(), devices=[FAST, slow(), FAST])
    sent = kept_results(world)
    sent[1].parts["tail"]["fc_norm.bias"].fill_(math.inf)
    report = world.server.end_round(sent)
    assert report.seconds == results[1].macs / SPEED
    assert report.trained == (0, 2)


def test_failures_beside_late_clients_are_an_error_only_without_any_update(make_world: Callable[..., Any]) -> None:
    deadline = Deadline(1e-6)
    some, none = (make_world(EndToEnd(), devices=[FAST, fast, slow()], deadline=deadline) for fast in (FAST, slow()))
    for world in (some, none):
        sent = kept_results(world)
        sent[0].parts["tail"]["fc_norm.bias"].fill_(math.nan)
        if world is some:
            assert world.server.end_round(sent).trained == (1,)
        else:
            with pytest.raises(AllClientsFailedError, match=r"client 0: tail/fc_norm\.bias is not finite"):
                world.server.end_round(sent)


def test_a_result_is_not_shortened_for_the_client(make_world: Callable[..., Any]) -> None:
    world = make_world(EndToEnd(), devices=[slow()] * 3, deadline=Deadline(1.0, "send_finished_layers"))
    results = kept_results(world)
    world.server.end_round(results)
    assert all(isinstance(result, Result) and len(result.parts) == 6 for result in results)
