"""Checks of settings that need or exclude each other."""

from __future__ import annotations

from typing import Any

from ssl_methods import Method, SSLMethod


def check_together(deadline: Any, devices: Any, memory_budget: Any, micro_batch: Any, bank: Any) -> None:
    """Check settings that need or exclude each other.

    Raises:
        ValueError: A setting lacks one that it needs, or meets one that it excludes.
    """
    if deadline and not devices:
        raise ValueError("a deadline needs devices, whose speed says who is late: set model.devices")
    if memory_budget and micro_batch:
        raise ValueError(f"a memory_budget plans whole batches: leave out micro_batch {micro_batch}, or the budget")
    if memory_budget and bank:
        raise ValueError("a memory_budget plans steps that run the frozen prefix: leave out the bank, or the budget")


def check_start(start: Any, aggregation: Any) -> None:
    """Check that clients start from the weights that a correction is meant for.

    Raises:
        ValueError: They start from others.
    """
    if aggregation.corrects:
        raise ValueError(
            f"aggregation {type(aggregation).__name__} corrects gradients for clients that start from the global "
            f"weights, not for {type(start).__name__}: leave out start, or choose another --model.aggregation"
        )


def check_method(method: Method, alignment: Any, bank: Any) -> None:
    """Check settings that need views of images.

    Raises:
        ValueError: The method has no views of images, or too many for a bank.
    """
    if alignment and not isinstance(method, SSLMethod):
        raise ValueError(f"alignment compares views: {type(method).__name__} has none, leave it out")
    if bank and method.modality != "images":
        raise ValueError(f"a bank stores views of images: {type(method).__name__} has none, leave it out")
    if bank and method.num_views > 2:
        name, number = type(method).__name__, method.num_views
        raise ValueError(f"a bank stores two kinds of views: {name} has {number} views, leave it out")
