"""Tasks and results survive the journey, and nothing that arrives can do harm."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("flwr", reason="the extra fedssl[flower] is not installed")

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedssl.flower.records import (
    CAUSES,
    Hello,
    Lacking,
    Order,
    Refusal,
    decode_answer,
    decode_hello,
    decode_order,
    encode_answer,
    encode_hello,
    encode_order,
    wire_bytes,
)
from fedssl.flower.roster import Roster
from fedssl.protocol.messages import Failure, Parts, Result, flatten, num_bytes
from fedssl.server.aggregation import SCAFFOLD, Aggregation, WeightedMean


def same(a: Parts, b: Parts) -> bool:
    first, second = flatten(a), flatten(b)
    return list(first) == list(second) and all(
        torch.equal(first[key], second[key]) and first[key].dtype == second[key].dtype for key in first
    )


def note(text: str, **records: Any) -> RecordDict:
    return RecordDict({"note": ConfigRecord({"json": text}), **records})


@pytest.mark.parametrize("rule", [WeightedMean, SCAFFOLD])
def test_orders_and_answers_come_back_as_they_were(rule: type[Aggregation], make_world: Callable[..., Any]) -> None:
    world = make_world(aggregation=rule())
    task = world.tasks(rounds=1)[1]
    assert task.frozen
    assert bool(task.correction) == rule.corrects
    arrived = decode_order(encode_order(Order(task, "ab12", "model: x", 7)))
    assert (arrived.run_id, arrived.recipe, arrived.needed_bytes) == ("ab12", "model: x", 7)
    assert same(arrived.task.active, task.active)
    assert same(arrived.task.frozen, task.frozen)
    assert same(arrived.task.correction, task.correction)
    tensors = {"active": 0, "frozen": 0, "correction": 0}
    assert vars(arrived.task) | tensors == vars(task) | tensors
    result = world.local(task, world.clients[1])
    back = decode_answer(encode_answer(result), 1)
    assert same(back.parts, result.parts)
    assert vars(back) | {"parts": 0} == vars(result) | {"parts": 0}
    framing = wire_bytes(encode_answer(result)) - num_bytes(result.parts)
    assert 0 < framing < 200 * len(flatten(result.parts)) + 300


def test_other_answers_come_back() -> None:
    assert decode_answer(encode_answer(Lacking({"stem": "0"})), 3) == Lacking({"stem": "0"})
    assert decode_answer(encode_answer(Refusal("images")), 3) == Failure(3, CAUSES["images"], skipped=True)
    assert decode_answer(encode_answer(Refusal("memory")), 3) == Failure(3, CAUSES["memory"], declined=True)
    with pytest.raises(ValueError, match="its operator does not allow that"):
        decode_hello(encode_answer(Refusal("consent")))


def test_of_a_refusal_only_known_words_are_read() -> None:
    failure = decode_answer(encode_answer(Refusal("a\nforged   line" + "!" * 1000)), 3)
    assert isinstance(failure, Failure)
    assert failure.reason.startswith("its answer is malformed: KeyError 'a")
    assert len(failure.reason) == 300


def test_withheld_figures_are_not_sent_and_have_stand_ins() -> None:
    result = Result(1, {}, 30, 2.5, 6.5, 100, 50, steps=4)
    content = encode_answer(result, ["loss", "counts", "operations"])
    assert json.loads(content.config_records["note"]["json"]) == {"kind": "Result"}
    back = decode_answer(content, 1, withheld=["loss", "counts", "operations"], assumed_images=200)
    assert back == Result(1, {}, 200, None, None, 0, 0, steps=1)
    assert "malformed: KeyError" in decode_answer(content, 1, withheld=["loss", "counts"]).reason
    assert decode_answer(encode_answer(result), 1, withheld=["loss"]) == result


def figures(**changes: str) -> str:
    """What a result says beside its tensors."""
    names = ("num_images", "loss", "squared_loss", "macs", "activation_bytes", "steps")
    said = dict.fromkeys(names, "1") | changes
    return '{"kind": "Result", ' + ", ".join(f'"{name}": {value}' for name, value in said.items()) + "}"


@pytest.mark.parametrize(
    "content",
    [
        RecordDict({}),
        note("{"),
        note("[]"),
        note("{}"),
        note('{"kind": "Result"}'),
        note('{"kind": "Lacking", "held": [1]}'),
        note(figures(num_images="true")),
        note(figures(loss="NaN")),
        note(figures(steps="-1")),
        note(figures(steps="1.5")),
        note('{"kind": "Result"}', parts=ArrayRecord({"a/b": Array("float32", (9,), "pickle", b"\x80\x04.")})),
    ],
)
def test_what_cannot_be_read_is_a_failure(content: RecordDict) -> None:
    failure = decode_answer(content, 5)
    assert isinstance(failure, Failure)
    assert failure.client_id == 5
    assert "malformed" in failure.reason


@pytest.mark.parametrize("text", ["[" * 200_000, '{"held": {' + '"a": "b", ' * 200_000, "1"])
def test_hostile_hellos_are_refused_before_they_cost_much(text: str) -> None:
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    roster = Roster(None, 3, RecordDict(), lambda _: None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="malformed") as refused:
        roster._read(Message(note(text), 100, "query"))
    assert len(str(refused.value)) < 400


def test_answers_larger_than_their_task_are_not_read() -> None:
    large = note('{"kind": "Result"}', parts=ArrayRecord({"a/b": Array(torch.zeros(1000).numpy())}))
    failure = decode_answer(large, 5, most_bytes=1000)
    assert isinstance(failure, Failure)
    assert "bytes of tensors, its task takes 1000" in failure.reason


def test_hellos() -> None:
    hello = Hello(2, {"stem": "0" * 32}, 512, 0, ("loss",))
    assert decode_hello(encode_hello(hello)) == hello
    for bad in (Hello(-1, {}, 0, 0), Hello(0, {}, math.inf, 0), Hello(0, {"stem": 3}, 0, 0)):  # type: ignore[arg-type, dict-item]
        with pytest.raises(ValueError, match=r"client_id|memory_bytes|it holds"):
            decode_hello(encode_hello(bad))
