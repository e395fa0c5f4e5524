"""Tasks and results as Flower's records: weights as arrays by tensor name, everything else as one line of JSON.

A node sends what the functions here encode, and nothing else. ``docs/deployment.md`` lists it, and a test holds the
messages of a run to the list.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fedssl.protocol.messages import Failure, Parts, Result, Task, flatten, unflatten
from layerwise import Stage

LONGEST_REASON = 300
LONGEST_NOTE = 2**20
"""Characters of what a client says beside its tensors; a thousand parts that it holds take a tenth of that."""

WITHHOLDABLE = {
    "loss": ("loss", "squared_loss"),
    "counts": ("num_images", "steps"),
    "operations": ("macs", "activation_bytes"),
}
"""Figures of a result that a node's operator can keep back."""

COUNTS = ("num_images", "steps", "macs", "activation_bytes")

CAUSES = {
    "memory": "declines the stage: it needs more memory than the node allows",
    "images": "too few images to contrast",
    "loss": "its loss is not finite",
    "consent": "its operator does not allow that; the node's log and audit file say what",
    "error": "it failed; the node's log and audit file say why",
}
"""Why a client gives nothing. Only the word travels: the texts of errors name files and images of the node."""


@dataclass(frozen=True)
class Hello:
    """Self-description of a client.

    Args:
        client_id: Configured number of the client.
        held: Content id of every frozen part that it holds.
        memory_bytes: Memory that it may use; 0 if there is no limit.
        num_images: Images of its own; 0 if the run's data set is divided among the clients, or if it withholds counts.
        withheld: Figures that its results will lack, of ``WITHHOLDABLE``.
    """

    client_id: int
    held: dict[str, str]
    memory_bytes: int
    num_images: int
    withheld: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lacking:
    """Answer of a client without some frozen parts that the server believed it to hold.

    Args:
        held: Content id of every frozen part that it holds.
    """

    held: dict[str, str]


@dataclass(frozen=True)
class Refusal:
    """Answer of a client that gives nothing.

    Args:
        cause: One of ``CAUSES``.
    """

    cause: str


class RefusedError(ValueError):
    """A node does not take part, and says so."""


@dataclass(frozen=True)
class Question:
    """Question who a client is.

    Args:
        run_id: Id of the run.
        recipe: Model and data of the run.
    """

    run_id: str
    recipe: str


@dataclass(frozen=True)
class Order:
    """Task of a client, with all else that it needs to know.

    Args:
        task: Task to train.
        run_id: Id of the run; a client keeps the files of several runs apart by it.
        recipe: Model and data of the run, see :mod:`fedssl.flower.recipe`.
        needed_bytes: Predicted memory of a local step; 0 if the client has no limit.
    """

    task: Task
    run_id: str
    recipe: str
    needed_bytes: int


def encode_question(question: Question) -> RecordDict:
    """Pack the question who a client is."""
    return _pack(asdict(question))


def decode_question(content: RecordDict) -> Question:
    """Unpack the question."""
    note = _note(content)
    return Question(str(note["run_id"]), str(note["recipe"]))


def encode_order(order: Order) -> RecordDict:
    """Pack an order: the task's tensors as arrays, the rest as a note."""
    task = order.task
    note = {"client_id": task.client_id, "round": task.round, "stage": asdict(task.stage)}
    note |= {"frozen_ids": task.frozen_ids, "run_id": order.run_id, "recipe": order.recipe}
    note |= {"needed_bytes": order.needed_bytes, "lr_factor": task.lr_factor}
    return _pack(note, active=task.active, frozen=task.frozen, correction=task.correction)


def decode_order(content: RecordDict) -> Order:
    """Unpack an order."""
    note = _note(content)
    fields = note["stage"]
    stage = Stage(**fields | {name: tuple(fields[name]) for name in ("present", "trained", "groups")})
    active, frozen, correction = (_parts(content, name) for name in ("active", "frozen", "correction"))
    fixed = note["client_id"], note["round"], stage, active, note["frozen_ids"], frozen, correction
    task = Task(*fixed, note["lr_factor"])
    return Order(task, note["run_id"], note["recipe"], note["needed_bytes"])


def encode_answer(answer: Result | Lacking | Refusal, withheld: Collection[str] = ()) -> RecordDict:
    """Pack a client's answer to an order.

    Args:
        answer: The answer.
        withheld: Figures to leave out, of ``WITHHOLDABLE``.
    """
    left_out = {"parts", "client_id", *(name for figure in withheld for name in WITHHOLDABLE[figure])}
    fields = {key: value for key, value in vars(answer).items() if key not in left_out}
    parts = answer.parts if isinstance(answer, Result) else {}
    return _pack({"kind": type(answer).__name__, **fields}, parts=parts)


def decode_answer(
    content: RecordDict,
    client_id: int,
    most_bytes: float = math.inf,
    *,
    withheld: Collection[str] = (),
    assumed_images: int = 1,
) -> Result | Failure | Lacking:
    """Unpack an answer that nobody has checked yet.

    Args:
        content: Answer, as it came over the network.
        client_id: Client that was asked.
        most_bytes: Limit on its tensors, in bytes.
        withheld: Figures that the answer may lack, of ``WITHHOLDABLE``.
        assumed_images: Number of images of a client that withholds it.

    Returns:
        The answer, or a ``Failure`` that says what is wrong with it. Names, shapes and values of the tensors are left
        to the server's intake.
    """
    try:
        note = _note(content, LONGEST_NOTE)
        if note["kind"] == "Lacking":
            return Lacking(_names(note["held"]))
        if note["kind"] == "Refusal":
            cause = note["cause"]
            return Failure(client_id, CAUSES[cause], skipped=cause == "images", declined=cause == "memory")
        if note["kind"] != "Result":
            raise ValueError(f"it is a {str(note['kind'])[:20]!r}")
        size = sum(record.count_bytes() for record in content.array_records.values())
        if size > most_bytes:
            raise ValueError(f"{size} bytes of tensors, its task takes {most_bytes}")
        return _result(_completed(note, withheld, assumed_images), _parts(content, "parts"), client_id)
    # Of any kind: deeply nested text ends in a ``RecursionError``.
    except Exception as error:
        return malformed(client_id, error)


def malformed(client_id: int, error: Exception) -> Failure:
    """Turn the error in reading an answer into the failure of its client."""
    reason = f"its answer is malformed: {type(error).__name__} {error}"
    return Failure(client_id, " ".join(reason.split())[:LONGEST_REASON])


def encode_hello(hello: Hello) -> RecordDict:
    """Pack a client's self-description."""
    return _pack(asdict(hello))


def decode_hello(content: RecordDict) -> Hello:
    """Unpack a self-description that nobody has checked yet.

    Raises:
        RefusedError: The client does not take part.
        ValueError: It is impossible.
    """
    note = _note(content, LONGEST_NOTE)
    if "cause" in note:
        raise RefusedError(CAUSES[note["cause"]])
    withheld = tuple(figure for figure in WITHHOLDABLE if figure in note["withheld"])
    client_id, memory_bytes, num_images = (_count(note, name) for name in ("client_id", "memory_bytes", "num_images"))
    return Hello(client_id, _names(note["held"]), memory_bytes, num_images, withheld)


def wire_bytes(content: RecordDict) -> int:
    """Count the bytes of a message's arrays and notes, with the header of each array and all names."""
    return sum(record.count_bytes() for record in content.values())


def _pack(note: dict[str, Any], **parts: Parts) -> RecordDict:
    records = RecordDict()
    for name, each in parts.items():
        if each:
            records[name] = ArrayRecord({key: tensor.detach().cpu() for key, tensor in flatten(each).items()})
    records["note"] = ConfigRecord({"json": json.dumps(note)})
    return records


def _note(content: RecordDict, longest: float = math.inf) -> dict[str, Any]:
    text = content.config_records["note"]["json"]
    if not isinstance(text, str) or len(text) > longest:
        raise ValueError(f"its note is {type(text).__name__} of length {len(str(text))}, allowed are {longest:g}")
    note = json.loads(text)
    if not isinstance(note, dict):
        raise ValueError("its note is no mapping")
    return note


def _parts(content: RecordDict, name: str) -> Parts:
    record = content.array_records.get(name)
    return unflatten(dict(record.to_torch_state_dict())) if record else {}


def _completed(note: dict[str, Any], withheld: Collection[str], assumed_images: int) -> dict[str, Any]:
    """Add what stands for withheld figures; rules and selectors that count on the true ones take no such client."""
    stand_ins = {"loss": None, "squared_loss": None, "num_images": assumed_images, "steps": 1}
    lacking = (name for figure in withheld for name in WITHHOLDABLE[figure])
    return {name: stand_ins.get(name, 0) for name in lacking} | note


def _result(note: dict[str, Any], parts: Parts, client_id: int) -> Result:
    loss, squared_loss = (None if note[name] is None else float(note[name]) for name in WITHHOLDABLE["loss"])
    images, steps, macs, activation_bytes = (_count(note, name) for name in COUNTS)
    if images < 1 or not all(each is None or math.isfinite(each) for each in (loss, squared_loss)):
        raise ValueError(f"{images} images with a loss of {loss}")
    return Result(client_id, parts, images, loss, squared_loss, macs, activation_bytes, steps)


def _count(note: dict[str, Any], name: str) -> int:
    value = note[name]
    # Neither ``isinstance``, for which JSON's true is 1, nor numbers beyond the integers of a tensor or a checkpoint.
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{name} is {value!r}")
    return value


def _names(held: Any) -> dict[str, str]:
    if not isinstance(held, dict) or not all(isinstance(each, str) for each in [*held, *held.values()]):
        raise ValueError(f"it holds {held!r}")
    return held
