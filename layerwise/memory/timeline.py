"""When backward needs each saved value."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from layerwise.memory.graph import StepTrace

NEARBY = 2
"""Nodes of backward between two uses over which a restored copy is held instead of being made again."""


@dataclass(frozen=True)
class Use:
    """Uses of a value that one restored copy serves.

    Args:
        first: Number of the first unpacking.
        last: Number of the last unpacking of the node that uses it last.
        count: How many times it is unpacked.
    """

    first: int
    last: int
    count: int


@dataclass(frozen=True)
class Timeline:
    """The order of backward.

    Args:
        length: Number of unpackings.
        uses: Of each saved value; empty if backward never asks for it.
    """

    length: int
    uses: dict[int, tuple[Use, ...]]

    def whole(self, value: int) -> Use | None:
        """All uses of a value as one."""
        uses = self.uses[value]
        return Use(uses[0].first, uses[-1].last, sum(use.count for use in uses)) if uses else None

    def released(self, value: int) -> int:
        """Number of the last unpacking at which autograd still holds the value."""
        uses = self.uses[value]
        return uses[-1].last if uses else self.length - 1


def timeline_of(trace: StepTrace) -> Timeline:
    """The uses of every saved value of a trace."""
    last = {node: number for number, (_, node) in enumerate(trace.unpacks)}
    unpacks: dict[int, list[tuple[int, int]]] = {slot: [] for slot in range(len(trace.slots))}
    for number, (slot, node) in enumerate(trace.unpacks):
        unpacks[slot].append((number, node))
    uses = {
        value: _uses(sorted(unpack for slot in slots for unpack in unpacks[slot]), last)
        for value, slots in trace.saved.items()
    }
    return Timeline(len(trace.unpacks), uses)


def _uses(unpacks: list[tuple[int, int]], last: dict[int, int]) -> tuple[Use, ...]:
    if not unpacks:
        return ()
    breaks = [place for place, (a, b) in enumerate(pairwise(unpacks), start=1) if b[1] - a[1] > NEARBY]
    runs = [unpacks[start:end] for start, end in pairwise([0, *breaks, len(unpacks)])]
    return tuple(Use(run[0][0], last[run[-1][1]], len(run)) for run in runs)
