"""Attack by one of ten Flower clients: the end of the run, and the distance that the model moves.

The messages go through the code that reads them from Flower; only the network is left out.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from benchmarks.record import write_record
from benchmarks.reliability.tiny import IMAGES, answer, directions, norm_of, tiny_server, weights
from fedssl.flower.records import Hello, Lacking, decode_answer, encode_answer, encode_hello
from fedssl.flower.roster import Roster
from fedssl.protocol.messages import Failure, Result, Tensors
from fedssl.server.aggregation import (
    LDAWA,
    Aggregation,
    CoordinateMedian,
    Krum,
    NormWeightedMean,
    PrivateMean,
    StragglerMean,
    TrimmedMean,
    WeightedMean,
)
from fedssl.server.global_step import AggregatedStep
from fedssl.server.selection import FedHybridSelector, SmartFreezeSelector
from fedssl.server.server import Server
from fedssl.server.updates import MAX_UPDATE

CLIENTS, HONEST_NORM = 10, 1.0
MEANS: dict[str, Callable[[], Aggregation]] = {
    "WeightedMean": WeightedMean,
    "LDAWA": LDAWA,
    "StragglerMean": StragglerMean,
    "NormWeightedMean": NormWeightedMean,
    "PrivateMean": lambda: PrivateMean(1.0, 4.0, max_epsilon=math.inf),
    "CoordinateMedian": CoordinateMedian,
    "TrimmedMean(0.2)": TrimmedMean,
    "Krum(1)": lambda: Krum(1),
}
DEEP, LONG = "[" * 200_000, "x" * 5_000_000
NAMES = {f"part {number}": "0" * 32 for number in range(300_000)}

Attack = Callable[[Result], RecordDict]


def note(**fields: Any) -> Attack:
    """Claims something else."""

    def lie(result: Result) -> RecordDict:
        content = encode_answer(result)
        told = json.loads(content.config_records["note"]["json"]) | fields
        return RecordDict({**content, "note": ConfigRecord({"json": json.dumps(told)})})

    return lie


def text(raw: str) -> Attack:
    """Says something else than a note."""
    return lambda result: RecordDict({**encode_answer(result), "note": ConfigRecord({"json": raw})})


def filled(value: float) -> Attack:
    """Sends one number everywhere."""
    return lambda result: encode_answer(
        replace(
            result,
            parts={
                part: {k: torch.full_like(t, value) if t.is_floating_point() else t for k, t in tensors.items()}
                for part, tensors in result.parts.items()
            },
        )
    )


def array(make: Callable[[], Array | None], name: str = "") -> Attack:
    """Sends another array in the place of the first one, or under a new name; none: leaves it out."""

    def lie(result: Result) -> RecordDict:
        content = encode_answer(result)
        arrays = dict(content.array_records["parts"])
        key = name or next(iter(arrays))
        made = make()
        arrays = {k: v for k, v in arrays.items() if k != key} | ({key: made} if made else {})
        return RecordDict({**content, "parts": ArrayRecord(arrays)})

    return lie


def raw_array(
    data: bytes, dtype: str = "float32", shape: tuple[int, ...] = (4,), stype: str = "numpy.ndarray"
) -> Attack:
    """Sends these bytes as an array."""
    return array(lambda: Array(dtype, shape, stype, data))


def header(shape: str) -> bytes:
    """Header of a numpy file that claims a shape."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


ANSWERS: dict[str, Attack] = (
    {
        f"num_images {value!r}"[:60]: note(num_images=value)
        for value in (0, -5, True, 1.5, 10**400, 10**18, 2**63 - 1, "1", None)
    }
    | {f"loss {value!r}": note(loss=value) for value in (float("nan"), float("inf"), 1e308, -1e308, "x", None)}
    | {f"squared_loss {value!r}": note(squared_loss=value) for value in (-5, float("nan"), 1e308)}
    | {
        f"{name} {value!r}": note(**{name: value})
        for name in ("macs", "activation_bytes", "steps")
        for value in (-1, 2**63 - 1, "1")
    }
    | {f"weights {value:g}": filled(value) for value in (float("nan"), float("inf"), 3e38, -3e38, 1e30, 1e6)}
    | {
        "kind unknown": note(kind="Other"),
        "kind Lacking, 300,000 names": note(kind="Lacking", held=NAMES),
        "kind Lacking, held is a list": note(kind="Lacking", held=[1]),
        "kind Failure, reason of 5 MB": note(kind="Failure", reason=LONG, skipped=False, declined=False),
        "note of 200,000 brackets": text(DEEP),
        "note of 5 MB": text(LONG),
        "note that is a list": text("[]"),
        "note that is cut off": text("{"),
        "no note": lambda result: RecordDict({"parts": encode_answer(result).array_records["parts"]}),
        "no arrays": array(lambda: None),
        "another array beside": array(lambda: Array(torch.zeros(2).numpy()), "stem/more"),
        "another shape": array(lambda: Array(torch.zeros(3, 1).numpy())),
        "float64": array(lambda: Array(torch.zeros(3).double().numpy())),
        "20 MB in one array": array(lambda: Array(torch.zeros(5_000_000).numpy())),
        "pickle in an array": raw_array(b"\x80\x04K\x01.", "object", (1,)),
        "pickle as its type": raw_array(b"\x80\x04.", stype="pickle"),
        "garbage": raw_array(b"garbage"),
        "header of 4 TB": raw_array(header("(1000000000000,)")),
        "header of 8 GB": raw_array(header("(2000000000,)")),
        "negative shape": raw_array(header("(-4,)")),
        "empty message": lambda _: RecordDict({}),
    }
)
HELLOS: dict[str, RecordDict] = {
    "200,000 brackets": RecordDict({"note": ConfigRecord({"json": DEEP})}),
    "300,000 names in held": encode_hello(Hello(1, NAMES, 0, 0)),
    "held of numbers": encode_hello(Hello(1, {"stem": 3}, 0, 0)),  # type: ignore[dict-item]
    "negative client": encode_hello(Hello(-1, {}, 0, 0)),
    "client 10^18": encode_hello(Hello(10**18, {}, 0, 0)),
    "memory that is no number": encode_hello(Hello(1, {}, "x", 0)),
    "no note": RecordDict({}),
}


def play(
    rule: Aggregation, attack: Attack, selector: Any = None, bound: float = MAX_UPDATE, lies: int = 1
) -> dict[str, Any]:
    """Rounds in the first of which client 0 lies, and two more; how it ended, and how far the model went until then."""
    server, outcome = tiny_server(rule, CLIENTS, selector), ""
    assert isinstance(server.step, AggregatedStep)
    server.step.max_update = bound
    before = {key: tensor.clone() for key, tensor in weights(server).items()}
    for round_ in range(lies + 2):
        cohort = server.begin_round().participants
        results: list[Any] = [answer(server, client, honest(server, client)) for client in cohort]
        content = attack(results[0]) if round_ < lies else None
        try:
            if content is not None:
                results[0] = _read(server, content)
            report = server.end_round(results)
        except Exception as error:
            return {"outcome": f"run ends in round {round_}: {type(error).__name__} {error}"[:90], "moved": math.inf}
        if round_ < lies:
            moved = norm_of({key: tensor - before[key] for key, tensor in weights(server).items()})
            outcome = outcome or (report.failures[0].reason[:90] if report.failures else "counted")
    return {"outcome": outcome, "moved": moved}


def _read(server: Server, content: RecordDict) -> Result | Failure:
    said = decode_answer(content, 0, 10**6)
    if not isinstance(said, Lacking):
        return said
    server.holdings.replace(0, said.held)
    return Failure(0, "it lacks layers, and is sent them once more")


def honest(server: Server, client: int) -> Tensors:
    """Updates of norm one, half of it in common."""
    common, own = directions(server, HONEST_NORM / 2, 7), directions(server, HONEST_NORM / 2, 100 + client)
    return {key: common[key] + own[key] for key in common}


def greet(content: RecordDict) -> str:
    """Send a hello and tell if the roster refuses it."""
    roster = Roster(None, CLIENTS, RecordDict({}), lambda _: None)
    try:
        roster._take(101, Message(content, 101, "query"))
    except Exception as error:
        return f"run ends: {type(error).__name__}"
    return "takes part" if roster._nodes else "its node is left out"


def reach(bound: float) -> Attack:
    """The most that one client can do in one round without being dropped: all tensors by the bound."""

    def lie(result: Result) -> RecordDict:
        far = {
            part: {
                key: t + 0.9 * bound * (1 + float(t.norm()) / max(1, t.numel()) ** 0.5) if t.is_floating_point() else t
                for key, t in tensors.items()
            }
            for part, tensors in result.parts.items()
        }
        return encode_answer(replace(result, parts=far))

    return lie


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``reliability_attacks``."""
    commands.add_parser("reliability_attacks", help=__doc__).set_defaults(run=run)


def run(arguments: argparse.Namespace, folder: Path) -> None:
    """All attacks under the default rule, the destructive ones under all, and what remains possible."""
    logging.disable(logging.WARNING)
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    plain = play(WeightedMean(), encode_answer)["moved"]
    rows = [
        {"attack": f"hello: {name}", "rule": "", "outcome": greet(hello), "moved": ""} for name, hello in HELLOS.items()
    ]
    cases = [("WeightedMean", None, name) for name in ANSWERS]
    cases += [(rule, None, name) for rule in MEANS for name in ("weights 3e+38", "weights 1e+30")][2:]
    selectors = {"SmartFreezeSelector": SmartFreezeSelector, "FedHybridSelector": lambda: FedHybridSelector("1GiB")}
    cases += [("WeightedMean", each, name) for each in selectors for name in ANSWERS if "loss" in name]
    for rule, selector, name in cases:
        played = play(MEANS[rule](), ANSWERS[name], selectors[selector]() if selector else None)
        label = f"{rule}, {selector}" if selector else rule
        rows.append(
            {"attack": name[:60], "rule": label, "outcome": played["outcome"], "moved": f"{played['moved']:.3g}"}
        )
    for bound, lies in ((MAX_UPDATE, 1), (MAX_UPDATE, 20), (1.0, 1), (0.1, 1)):
        for rule, make in MEANS.items():
            played = play(make(), reach(bound), bound=bound, lies=lies)
            what = f"within max_update {bound:g}" + (f", in {lies} rounds" if lies > 1 else "")
            rows.append({"attack": what, "rule": rule, "outcome": played["outcome"], "moved": f"{played['moved']:.3g}"})
    ended = [row for row in rows if row["outcome"].startswith("run ends") and not row["attack"].startswith("within")]
    notes = f"""
One of {CLIENTS} clients, of {IMAGES} images each, lies in the first of three rounds; the other nine give updates of
norm {HONEST_NORM / 2**0.5:.2f}. "moved" is the norm of the global model's change in the round with the liar; without
one it is {plain:.3g}. Of {len(rows)} trials {len(ended)} end the run, but for those "within max_update".
Those are not withstood by means and not meant to be: the liar changes every tensor by nine tenths of what would be
refused. Robust rules are the answer to it, a smaller bound, or the clip of PrivateMean.
"""
    write_record(folder, "reliability_attacks", "What one lying client can do", rows, rows, notes)
    print(notes)
