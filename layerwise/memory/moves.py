"""What a plan can change: single values and whole segments, and what a change is worth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from layerwise.memory.graph import StepTrace, Value
from layerwise.memory.plan import LOSSLESS, Action
from layerwise.memory.simulation import Simulation, dropped_by

SMALLEST = 4096
"""Bytes of the smallest value that is worth an action of its own."""

SHORTEST = 1e-9
"""Seconds that count for a move that costs no time."""

ALONE = Action("recompute")

Actions = dict[int, Action]
Move = Mapping[int, Action | None]


class Moves:
    """The moves of a step.

    Args:
        simulation: Of the step.
        recompute: Whether values may be recomputed.
        bits: Widths to which values may be compressed.
    """

    def __init__(self, simulation: Simulation, recompute: bool, bits: tuple[int, ...]) -> None:
        self._simulation = simulation
        self._trace = simulation.trace
        self._widths = tuple(sorted(bits, reverse=True))
        segments = segments_of(self._trace) if recompute else {}
        self._segments: list[Move] = [
            dict.fromkeys(members, Action("recompute", segment=name)) for name, members in segments.items()
        ]
        large = [value for value in self._trace.saved if self._trace.values[value].nbytes >= SMALLEST]
        self._single = [value for value in large if recompute and can_rebuild(self._trace, value)]
        self._lossy = [value for value in large if bits and _is_lossy(self._trace.values[value])]
        self._masks = [value for value in large if bits and _is_mask(self._trace.values[value])]

    def by_merit(self, actions: Actions, worst: int) -> list[Move]:
        """Moves that free bytes at a moment of backward, the one that frees most per second first.

        A lower width of a value that is compressed already costs no time, but precision: it is charged with the
        time of compression once more, so that it comes after moves that free more (our reading).
        """
        dropped = dropped_by(actions)
        now = {value: self._bytes(value, actions.get(value), worst) for value in self._trace.saved}
        rated = [
            (freed / max(SHORTEST, self._cost(move, actions, dropped)), place, move)
            for place, move in enumerate(self._all(actions))
            if (freed := sum(now[value] - self._bytes(value, action, worst) for value, action in move.items())) > 0
        ]
        return [move for merit, _, move in sorted(rated, key=lambda item: (-item[0], item[1])) if merit > 0]

    def undos(self, actions: Actions) -> list[Move]:
        """What takes each segment and each value back to being kept, the slowest ones first."""
        dropped = dropped_by(actions)
        groups: dict[str | int, dict[int, Action | None]] = {}
        for value, action in actions.items():
            groups.setdefault(action.segment or value, {})[value] = None

        def seconds(move: Move) -> float:
            return self._added({value: actions[value] for value in move}, dropped)

        return sorted(groups.values(), key=seconds, reverse=True)

    def replacements(self, actions: Actions) -> Iterator[Move]:
        """What gives a value that is not kept another action, one that by itself takes less time."""
        dropped = dropped_by(actions)
        for value, action in actions.items():
            others = [ALONE] if value in self._single else []
            others += [Action("compress", bits) for bits in self._widths] if value in self._lossy else []
            now = self._added({value: action}, dropped)
            for other in others:
                if other != action and self._added({value: other}, dropped) < now:
                    yield {value: other}

    def widenings(self, actions: Actions) -> Iterator[Move]:
        """What gives each compressed value more bits."""
        for value, action in actions.items():
            for bits in reversed(self._widths):
                if LOSSLESS < action.bits < bits:
                    yield {value: Action("compress", bits)}

    def _all(self, actions: Actions) -> Iterator[Move]:
        for value in self._single:
            if actions.get(value) != ALONE:
                yield {value: ALONE}
        for value in self._lossy:
            held = actions[value].bits if value in actions else 0
            lower = [bits for bits in self._widths if bits < held or not held]
            if lower:
                yield {value: Action("compress", lower[0])}
        for value in self._masks:
            if value not in actions or actions[value].bits != LOSSLESS:
                yield {value: Action("compress", LOSSLESS)}
        for move in self._segments:
            if any(actions.get(value) is not action for value, action in move.items()):
                yield move

    def _bytes(self, value: int, action: Action | None, moment: int) -> int:
        """What a value takes at a moment of backward."""
        timeline, nbytes = self._simulation.timeline, self._trace.values[value].nbytes
        present = moment <= timeline.released(value)
        if action is None:
            return nbytes * present
        used = any(use.first <= moment <= use.last for use in timeline.uses[value])
        packed = self._simulation.packed_bytes(value, action.bits) * present if action.bits else 0
        return packed + nbytes * used

    def _cost(self, move: Move, actions: Actions, dropped: set[int]) -> float:
        """Seconds that a move adds, roughly: what it changes for the recipes of other values is not followed."""
        spent = sum(
            self._spent(value, actions[value]) for value in move if value in actions and not _lowers(move, actions)
        )
        return self._added(move, dropped) - spent

    def _added(self, move: Move, dropped: set[int]) -> float:
        """Seconds of a move's actions; endless if it cannot be done."""
        if any(action is not None and action.bits for action in move.values()):
            return sum(self._spent(value, action) for value, action in move.items() if action is not None)
        targets = frozenset(value for value in move if self._simulation.timeline.uses[value])
        recipe = self._simulation.recipe(targets, dropped | move.keys())
        if recipe is None:
            return float("inf")
        alone = all(action is not None and action.segment is None for action in move.values())
        rebuilds = max(len(self._simulation.timeline.uses[value]) for value in move) if alone else 1
        return rebuilds * recipe.seconds(self._trace)

    def _spent(self, value: int, action: Action) -> float:
        """Seconds that an action costs at least."""
        if action.bits:
            restores = len(self._simulation.timeline.uses[value])
            return self._simulation.pack_seconds(value) + restores * self._simulation.restore_seconds(value)
        producer = self._trace.values[value].producer
        return self._trace.ops[producer].seconds if producer is not None else 0.0


def _lowers(move: Move, actions: Actions) -> bool:
    """Whether a move only takes bits from values that are compressed already."""
    return all(
        action is not None and action.bits and value in actions and actions[value].bits
        for value, action in move.items()
    )


def segments_of(trace: StepTrace) -> dict[str, list[int]]:
    """Values that a module call makes and only it reads, by call; calls with the same values count once."""
    last_read: dict[int, int] = {}
    for number, op in enumerate(trace.ops):
        last_read.update(dict.fromkeys(op.inputs, number))
    segments: dict[tuple[int, ...], str] = {}
    for name, (start, end) in trace.calls.items():
        inside = [
            value
            for value in trace.saved
            if can_rebuild(trace, value)
            and start <= (trace.values[value].producer or 0) < end
            and last_read.get(value, 0) < end
        ]
        if sum(trace.values[value].nbytes for value in inside) >= SMALLEST:
            segments.setdefault(tuple(inside), name)
    return {name: list(inside) for inside, name in segments.items()}


def can_rebuild(trace: StepTrace, value: int) -> bool:
    """Whether an operation made the value that can run again."""
    producer = trace.values[value].producer
    return producer is not None and trace.ops[producer].replayable


def _is_lossy(value: Value) -> bool:
    """Whether a value may be rounded: an operation's main result, in floats that are no mask."""
    return value.producer is not None and value.main and not value.mask and value.view.dtype.is_floating_point


def _is_mask(value: Value) -> bool:
    return value.producer is not None and value.mask
