"""Augmentation speed: batches of tensors against lightly's transforms of single PIL images, two views of each."""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import to_pil_image

from benchmarks.record import write_record
from ssl_methods import NaturalViews

NOTES = """
Two views of each image: `NaturalViews` in this process against lightly's `BYOLTransform` of the same settings on PIL
images (crop of 0.2 to 1 of the area, flip, jitter, grayscale, blur of 0.1 to 1 pixels in the first view and in a tenth
of the second ones, solarisation, normalisation) in DataLoader workers that live through all epochs. Source of both are
uint8 images in memory, result of both are batches of float32 tensors. Epochs of all sides alternate; medians, and the
medians of the ratios of neighbours. The first ratio is that of images a second, with as many threads on one side as
workers on the other; other work on the machine disturbs it. The second one is that of processor seconds (user and
system, workers and collecting process together, one thread on our side), which such work disturbs less.
"""
SIZES = (32, 64)
BATCHES = (64, 256)


class Seconds(NamedTuple):
    """Time of an epoch."""

    wall: float
    processor: float


class PILImages(Dataset):
    """The other side's data set: two views of one image at a time."""

    def __init__(self, images: Tensor) -> None:
        size = images.shape[-1]
        common = {
            "input_size": size,
            "min_scale": 0.2,
            "sigmas": (0.1, 1.0),
            "normalize": {"mean": [0.5] * 3, "std": [0.5] * 3},
        }
        self.images = [to_pil_image(image) for image in images]
        self.transform = BYOLTransform(BYOLView1Transform(**common), BYOLView2Transform(**common))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> list[Tensor]:
        return self.transform(self.images[index])


def add_commands(commands: Any) -> None:
    """Adds ``augmentation``."""
    parser = commands.add_parser("augmentation", help="batched views against PIL transforms")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--workers", type=int, default=2)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, results: Path) -> None:
    """Measures all sizes and writes the table."""
    table, data = [], {}
    for size in SIZES:
        images = torch.randint(256, (arguments.images, 3, size, size), dtype=torch.uint8)
        for batch in BATCHES:
            turns = _measure(images, batch, arguments.workers, arguments.repeats)
            data[f"{size}x{size}, batch {batch}"] = turns
            table.append({"image": f"{size}x{size}", "batch": batch} | _row(turns, len(images), arguments.workers))
    write_record(results, "augmentation", "Augmentation", table, data, NOTES)


def _row(turns: list[dict[str, Seconds]], images: int, workers: int) -> dict[str, str]:
    rates = {side: images / statistics.median(turn[side].wall for turn in turns) for side in turns[0]}
    wall = statistics.median(turn["PIL"].wall / turn["batched"].wall for turn in turns)
    processor = statistics.median(turn["PIL"].processor / turn["one thread"].processor for turn in turns)
    return {
        "a second, one thread": f"{rates['one thread']:,.0f}",
        f"{workers} threads": f"{rates['batched']:,.0f}",
        f"PIL, {workers} workers": f"{rates['PIL']:,.0f}",
        "ratio": f"{wall:.1f}",
        "of processor seconds": f"{processor:.1f}",
    }


def _measure(images: Tensor, batch: int, workers: int, repeats: int) -> list[dict[str, Seconds]]:
    """An epoch of each side, in turn; the first epochs start workers and threads and do not count."""
    loader = DataLoader(PILImages(images), batch, num_workers=workers, persistent_workers=True)
    views, generator = NaturalViews(), torch.Generator().manual_seed(0)

    def batched() -> None:
        for chunk in images.split(batch):
            views(chunk, generator)

    def single() -> None:
        for _ in loader:
            pass

    turns = []
    for _ in range(repeats + 1):
        torch.set_num_threads(1)
        turn = {"one thread": _seconds(batched), "PIL": _seconds(single)}
        torch.set_num_threads(workers)
        turns.append(turn | {"batched": _seconds(batched)})
    return turns[1:]


def _seconds(work: Callable[[], None]) -> Seconds:
    wall, processor = time.perf_counter(), _processor()
    work()
    return Seconds(time.perf_counter() - wall, _processor() - processor)


def _processor() -> float:
    """Processor seconds of this process and its workers until now; Linux gives every process a clock of that kind."""
    children = [child.pid for child in multiprocessing.active_children()]
    return time.process_time() + sum(time.clock_gettime(~pid << 3 | 2) for pid in children if pid is not None)
