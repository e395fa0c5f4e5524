"""Runs on faulty data, and with class paths that ask for other people's code."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.record import write_record
from benchmarks.reliability.cases import replaced
from benchmarks.reliability.fuzz import OUTCOMES, configurations, trials

NOTES = """
*Data*: `lw_fedssl.yaml`, shrunk, on an npz file of 90 images in 3 classes with one fault. *Class paths*: functions and
classes of other packages at places where a configuration names classes; each would leave a file behind, and *code ran*
counts these. Outcomes as for `reliability_fuzz`.
"""
BASE = "lw_fedssl"
PLACES = (
    "model", "data", "model.init_args.server_optimizer", "model.init_args.optimizer", "model.init_args.method",
    "model.init_args.augment", "model.init_args.scheme", "model.init_args.selector", "model.init_args.calibration",
    "data.init_args.partition", "trainer.callbacks", "trainer.logger", "trainer.plugins", "trainer.strategy",
)  # fmt: skip
FUNCTIONS = ("subprocess.call", "torch.hub.os.system", "numpy.save", "runpy.run_path", "torch.save", "pip.main")
IMAGES, SIDE = 90, 16


def add_commands(commands: Any) -> None:
    """Adds ``reliability_faulty``."""
    parser = commands.add_parser("reliability_faulty", help="faulty data, and class paths of other people's code")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, results: Path) -> None:
    """Runs all trials and writes the table."""
    whole = configurations()[BASE]
    table, found = [], {}
    for kind, cases in {"data": faulty_data, "class paths": class_paths}.items():
        with TemporaryDirectory() as folder:
            found[kind] = list(trials(cases(whole, Path(folder)), 120.0))
            for each in found[kind]:
                each["said"] = each["said"].replace(folder, "")
            counts = Counter(each["outcome"] for each in found[kind])
            row = {"kind": kind, "trials": len(found[kind])} | {outcome: counts[outcome] for outcome in OUTCOMES}
            table.append(row | {"code ran": int((Path(folder) / "ran").exists())})
    write_record(results, "reliability_faulty", "Faulty data and class paths", table, found, NOTES)


def class_paths(whole: dict[str, Any], folder: Path) -> Iterator[tuple[str, dict[str, Any], str]]:
    """``os.system`` everywhere, and other functions as the server's optimizer."""
    for place, path in [*((place, "os.system") for place in PLACES), *((PLACES[2], path) for path in FUNCTIONS)]:
        evil = {"class_path": path, "init_args": {"command": f"touch {folder / 'ran'}"}}
        yield BASE, replaced(whole, tuple(place.split(".")), evil), f"{place} = {path}"


def faulty_data(whole: dict[str, Any], folder: Path) -> Iterator[tuple[str, dict[str, Any], str]]:
    """A file for each fault."""
    for number, (what, change) in enumerate(faults().items()):
        arrays = sound() | change
        np.savez(folder / f"case{number}.npz", **arrays)
        data = {"dataset": f"medmnist:case{number}", "root": str(folder), "eval_train_images": None}
        yield BASE, whole | {"data": replaced_all(whole["data"], data)}, what


def replaced_all(data: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A data module with other settings."""
    return data | {"init_args": data["init_args"] | values}


def sound() -> dict[str, np.ndarray]:
    """A file without fault."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "test"):
        arrays[f"{split}_images"] = rng.integers(256, size=(IMAGES, SIDE, SIDE), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(IMAGES) % 3)[:, None]
    return arrays


def faults() -> dict[str, dict[str, np.ndarray]]:
    """Faulty arrays by the name of the fault."""
    images, labels = sound()["train_images"], sound()["train_labels"]
    wrong_labels = {
        "labels x.5": labels + 0.5,
        "labels with NaN": np.where(labels == 0, np.nan, labels),
        "labels with inf": np.where(labels == 0, np.inf, labels),
        "labels near a million": labels + 999_000,
        "labels as text": labels.astype(str),
        "labels too few": labels[:50],
        "labels all -1": np.full_like(labels, -1),
        "labels of one class": np.zeros_like(labels),
    }
    wrong_images = {
        "images all black": np.zeros_like(images),
        "images all equal": np.repeat(images[:1], IMAGES, axis=0),
        "images as floats": images / 255,
        "images with NaN": np.full(images.shape, np.nan),
        "images as int64": images.astype(np.int64),
        "images none": images[:0],
        "images of two channels": np.stack([images] * 2, axis=-1),
        "images not square": images[:, :, :8],
        "images as objects": np.array([None] * IMAGES),
        "images flat": images.reshape(IMAGES, -1),
    }
    found = {what: {"train_labels": value} for what, value in wrong_labels.items()}
    return found | {what: {"train_images": value} for what, value in wrong_images.items()}
