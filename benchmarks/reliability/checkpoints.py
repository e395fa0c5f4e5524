"""Resuming from damaged, foreign and altered checkpoints."""

from __future__ import annotations

import argparse
import os
import pickle
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.record import write_record
from benchmarks.reliability.tiny_run import RUN, fit, same
from fedssl.training.checkpoints import read_checkpoint

NOTES = """
A run of four rounds is stopped after the third. Its checkpoint is damaged and read again (upper rows), or its folder is
altered, or the settings are, and the run is resumed (lower rows). "Other weights" counts what was loaded without a word
and was not what had been written; the column of `torch.load(weights_only=True)` says how much of the same damage loads
there. A refusal is one line; each is in the JSON file.
"""
WIDE = ["--model.encoder.options={patch_size: 4, depth: 4, embed_dim: 64, num_heads: 2, global_pool: avg}"]
Change = Callable[[dict[str, Any]], object]


class Evil:
    """A pickle that would make a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("made-by-a-checkpoint",)


def add_commands(commands: Any) -> None:
    """Adds ``reliability_checkpoints``."""
    parser = commands.add_parser("reliability_checkpoints", help="damaged, foreign and altered checkpoints")
    parser.add_argument("--trials", type=int, default=300, help="flipped bits; a sixth as many zeroed pages")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, results: Path) -> None:
    """Damages, alters and writes the table."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        table, data = _damaged(folder, arguments.trials)
        shutil.rmtree(folder)
        outcomes = _altered(folder)
    count = Counter(_kind(outcome) for outcome in outcomes.values())
    table.append(
        {"what": "altered folders and settings", "trials": len(outcomes), "refused in one line": count["refused"]}
        | {"equal, or done as asked": count["done"], "other weights": "-", "tracebacks": count["traceback"]}
        | {"other weights with torch.load": "-"}
    )
    data = {"damage": data, "altered": outcomes}
    write_record(results, "reliability_checkpoints", "Damaged and altered checkpoints", table, data, NOTES)


def _damaged(folder: Path, trials: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    assert fit([*RUN, *WIDE, f"--run_dir={folder}"]) == "done"
    path = max((folder / "checkpoints").glob("*.ckpt"))
    whole, written, draw = path.read_bytes(), read_checkpoint(path), random.Random(0)
    path = folder / "damaged.ckpt"
    kinds: dict[str, Iterator[bytes]] = {
        "one flipped bit": (_flipped(whole, draw.randrange(8 * len(whole))) for _ in range(trials)),
        "one flipped bit in the archive's table of contents": (
            _flipped(whole, 8 * len(whole) - 1 - draw.randrange(8 * _table_bytes(whole))) for _ in range(trials)
        ),
        "a page of 4 KiB is zero": (_zeroed(whole, draw.randrange(len(whole) // 4096)) for _ in range(trials // 6)),
        "truncated": (whole[: len(whole) * part // 11] for part in range(11)),
    }
    table, data = [], {"bytes of the checkpoint": len(whole)}
    for kind, contents in kinds.items():
        ours: Counter[str] = Counter()
        theirs: Counter[str] = Counter()
        for content in contents:
            path.write_bytes(content)
            ours[_read(path, written, read_checkpoint)] += 1
            theirs[_read(path, written, lambda file: torch.load(file, weights_only=True))] += 1
        data[kind] = {"read_checkpoint": dict(ours), "torch.load": dict(theirs)}
        table.append(
            {"what": kind, "trials": sum(ours.values()), "refused in one line": ours["refused"]}
            | {"equal, or done as asked": ours["equal"], "other weights": ours["other"], "tracebacks": ours["crash"]}
            | {"other weights with torch.load": theirs["other"]}
        )
    return table, data


def _read(path: Path, written: dict[str, Any], read: Callable[[Path], Any]) -> str:
    try:
        return "equal" if same(read(path), written) else "other"
    except ValueError:
        return "refused"
    except Exception:
        return "crash"


def _flipped(whole: bytes, bit: int) -> bytes:
    changed = bytearray(whole)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def _zeroed(whole: bytes, page: int) -> bytes:
    return whole[: page * 4096] + bytes(4096) + whole[(page + 1) * 4096 :]


def _table_bytes(whole: bytes) -> int:
    return len(whole) - whole.index(b"PK\x01\x02")


def _altered(folder: Path) -> dict[str, str]:
    """Messages of resumed runs, by the altered part of the checkpoint."""
    assert fit([*RUN, f"--run_dir={folder}"]) == "done"
    (folder / "checkpoints" / "00003.ckpt").unlink()
    whole = folder.with_name("whole")
    folder.rename(whole)
    found = {}
    trials = {name: (change, []) for name, change in _contents().items()}
    trials |= {name: (None, settings) for name, settings in SETTINGS.items()}
    for name, (change, settings) in trials.items():
        shutil.copytree(whole, folder)
        if change:
            change(folder / "checkpoints" / "00002.ckpt")
        found[name] = fit([*RUN, f"--run_dir={folder}", "--ckpt_path=last", *settings]).replace(f"{folder}/", "")
        shutil.rmtree(folder)
    return found


def _contents() -> dict[str, Callable[[Path], object]]:
    """Ways to alter a checkpoint."""
    foreign = {"[1, 2]": [1, 2], "a foreign dict": {"w": torch.zeros(3)}, "a pickle with code": {"w": Evil()}}
    changes: dict[str, Change] = {
        "no server": lambda state: state.pop("server"),
        "no clock in the server": lambda state: state["server"].pop("seconds"),
        "no participation": lambda state: state["server"].pop("participation"),
        "an unknown field of the ledger": lambda state: state["server"]["ledger"]["0"].update(new=1),
        "an unknown field of a step's cost": lambda state: state["local"]["costs"][0].update(unknown=1),
        "no setting 'deadline'": lambda state: state["server"]["settings"].pop("deadline"),
        "no depth": lambda state: state.pop("depth"),
        "no loops": lambda state: state.pop("loops"),
        "no loop of rounds": lambda state: state["loops"].pop("fit_loop"),
        "no optimizer": lambda state: state.pop("optimizer_states"),
        "a tensor less": lambda state: state["state_dict"].popitem(),
        "text for a tensor": lambda state: state["state_dict"].update({next(iter(state["state_dict"])): "x"}),
        "text for the round": lambda state: state["server"].update(round="2"),
        "NaN in a weight": lambda state: next(iter(state["state_dict"].values())).fill_(float("nan")),
        "infinity in a weight": lambda state: next(iter(state["state_dict"].values())).fill_(float("inf")),
        "format 2": lambda state: state["fedssl"].update(format=2),
        "no format (older)": lambda state: state.pop("fedssl"),
    }
    made: dict[str, Callable[[Path], object]] = {
        "empty": lambda path: path.write_bytes(b""),
        "text": lambda path: path.write_text("hello"),
        "truncated": lambda path: path.write_bytes(path.read_bytes()[:1000]),
        "zero bytes": lambda path: path.write_bytes(bytes(10_000)),
        "a bare pickle": lambda path: path.write_bytes(pickle.dumps(Evil())),
    }
    made |= {name: lambda path, content=content: torch.save(content, path) for name, content in foreign.items()}
    return made | {name: lambda path, change=change: _edit(path, change) for name, change in changes.items()}


def _edit(path: Path, change: Change) -> None:
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def _kind(outcome: str) -> str:
    return outcome if outcome == "done" else "traceback" if outcome.startswith("traceback") else "refused"


ACCEPT = "--changed_settings=accept"
ADAM = ["--model.server_optimizer=torch.optim.Adam", "--model.server_optimizer.lr=0.1"]
SETTINGS: dict[str, list[str]] = {
    "nothing": [],
    "another seed": ["--seed_everything=1"],
    "another seed, accepted": ["--seed_everything=1", ACCEPT],
    "another method, accepted": ["--model.method=BYOL", ACCEPT],
    "another scheme, accepted": ["--model.scheme=Progressive", ACCEPT],
    "other clients, accepted": ["--data.clients=4", ACCEPT],
    "other rounds, accepted": ["--model.rounds=8", ACCEPT],
    "another width": ["--model.method.hidden_dim=32"],
    "another width, accepted": ["--model.method.hidden_dim=32", ACCEPT],
    "another depth, accepted": [WIDE[0].replace("embed_dim: 64", "embed_dim: 16"), ACCEPT],
    "another server optimizer": ADAM,
    "another server optimizer, accepted": [*ADAM, ACCEPT],
    "centralised": ["--model=CentralizedSSL"],
    "another temperature": ["--model.method.temperature=0.9"],
    "another temperature, accepted": ["--model.method.temperature=0.9", ACCEPT],
    "another augmentation": ["--model.augment=NaturalViews"],
    "another aggregation": ["--model.aggregation=CoordinateMedian"],
    "another participation": ["--model.participation=0.5"],
    "another dropout": ["--model.dropout=0.2"],
    "another learning rate": ["--model.optimizer.lr=0.5"],
    "another data root": ["--data.root=elsewhere"],
}
