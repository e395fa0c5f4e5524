"""How many bytes are alive at each moment of backward under a plan, and how much time it adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from layerwise.memory.codec import mask_bytes
from layerwise.memory.graph import StepTrace
from layerwise.memory.plan import LOSSLESS, Action
from layerwise.memory.recipe import Recipe, find_recipe
from layerwise.memory.timeline import Timeline, Use, timeline_of

Actions = Mapping[int, Action]


@dataclass(frozen=True)
class Outcome:
    """What actions lead to.

    Args:
        profile: Bytes alive at each unpacking of backward; before the first one they are never more.
        seconds: Time added to the step.
        reread: Values that are restored or made on the way when others are rebuilt.
    """

    profile: list[int]
    seconds: float
    reread: set[int]

    @cached_property
    def peak(self) -> int:
        """Bytes at the worst moment."""
        return max(self.profile)

    @cached_property
    def worst(self) -> int:
        """Number of the unpacking at the worst moment."""
        return self.profile.index(self.peak)


class Simulation:
    """Predicts the memory and time of actions on one traced step.

    Args:
        trace: The step.
    """

    def __init__(self, trace: StepTrace) -> None:
        self.trace = trace
        self.timeline: Timeline = timeline_of(trace)
        self.released = {value: self.timeline.released(value) for value in trace.saved}
        self.kept_changes = [0] * (max(1, self.timeline.length) + 1)
        for value, last in self.released.items():
            self.kept_changes[0] += trace.values[value].nbytes
            self.kept_changes[last + 1] -= trace.values[value].nbytes
        self._recipes: dict[frozenset[int], Recipe] = {}
        self._costs: dict[tuple[frozenset[int], tuple[int, ...], frozenset[int]], tuple[float, int]] = {}
        self._packed: dict[tuple[int, int], int] = {}

    def packed_bytes(self, value: int, bits: int) -> int:
        """Bytes of a compressed value."""
        if (value, bits) not in self._packed:
            content = self.trace.values[value]
            masked, packed = mask_bytes(content.numel, content.view.dtype.itemsize), content.layout.packed_bytes
            self._packed[value, bits] = masked if bits == LOSSLESS else packed(bits)
        return self._packed[value, bits]

    def held_bytes(self, value: int, action: Action | None) -> int:
        """Bytes that a value takes between forward and backward."""
        if action is None:
            return self.trace.values[value].nbytes
        return self.packed_bytes(value, action.bits) if action.bits else 0

    def pack_seconds(self, value: int) -> float:
        """Time of compressing a value."""
        return self.trace.codec.pack.seconds(self.trace.values[value].numel)

    def restore_seconds(self, value: int) -> float:
        """Time of restoring a compressed value."""
        return self.trace.codec.restore.seconds(self.trace.values[value].numel)

    def recipe(self, targets: frozenset[int], dropped: set[int]) -> Recipe | None:
        """As :func:`find_recipe`, remembered as long as it is right.

        Args:
            targets: Values to rebuild.
            dropped: Saved values that are not at hand, targets included.
        """
        known = self._recipes.get(targets)
        if known is not None and known.leaves.isdisjoint(dropped) and known.passed <= dropped:
            return known
        found = find_recipe(self.trace, targets, self.trace.saved.keys() - dropped)
        if found is not None:
            self._recipes[targets] = found
        return found

    def rebuild_cost(self, recipe: Recipe, restored: frozenset[int]) -> tuple[float, int]:
        """Time of a recipe and the bytes alive while it runs beyond its targets.

        Args:
            recipe: The recipe.
            restored: Leaves that have to be restored for it.
        """
        key = recipe.targets, recipe.ops, restored
        if key not in self._costs:
            seconds = recipe.seconds(self.trace) + sum(map(self.restore_seconds, restored))
            targets = sum(self.trace.values[value].nbytes for value in recipe.targets)
            self._costs[key] = seconds, recipe.peak_bytes(self.trace, restored) - targets
        return self._costs[key]

    def outcome(self, actions: Actions) -> Outcome | None:
        """What the actions lead to; ``None`` if a value cannot be rebuilt."""
        return _Run(self, actions).outcome()


class _Run:
    """Starts from the profile with everything kept and changes what the actions change."""

    def __init__(self, simulation: Simulation, actions: Actions) -> None:
        self._simulation, self._trace, self._timeline = simulation, simulation.trace, simulation.timeline
        self._actions = actions
        self._change = simulation.kept_changes.copy()
        self._released: dict[int, int] = {}
        self._reread: set[int] = set()
        self._seconds = 0.0

    def outcome(self) -> Outcome | None:
        dropped = dropped_by(self._actions)
        for unit in units_of(self._actions, self._timeline):
            recipe = self._simulation.recipe(unit.targets, dropped)
            if recipe is None:
                return None
            self._rebuild(unit, recipe)
        for value, action in self._actions.items():
            self._act(value, action)
        for leaf, last in self._released.items():
            held = self._simulation.held_bytes(leaf, self._actions.get(leaf))
            self._add(held, self._simulation.released[leaf] + 1, last)
        return Outcome(list(accumulate(self._change))[:-1], self._seconds, self._reread)

    def _rebuild(self, unit: Unit, recipe: Recipe) -> None:
        restored = frozenset(leaf for leaf in recipe.leaves if leaf in self._actions)
        seconds, extra = self._simulation.rebuild_cost(recipe, restored)
        self._reread |= restored | recipe.passed
        for moment in unit.rebuilds:
            self._seconds += seconds
            self._add(extra, moment, moment)
        for value, use in unit.held:
            self._add(self._trace.values[value].nbytes, use.first, use.last)
        for leaf in recipe.leaves:
            if unit.rebuilds[-1] > self._released.get(leaf, self._simulation.released[leaf]):
                self._released[leaf] = unit.rebuilds[-1]

    def _act(self, value: int, action: Action) -> None:
        nbytes, released = self._trace.values[value].nbytes, self._simulation.released[value]
        self._add(self._simulation.held_bytes(value, action) - nbytes, 0, released)
        if not action.bits:
            return
        self._seconds += self._simulation.pack_seconds(value)
        for use in self._timeline.uses[value]:
            self._seconds += self._simulation.restore_seconds(value)
            self._add(nbytes, use.first, use.last)

    def _add(self, nbytes: int, first: int, last: int) -> None:
        self._change[first] += nbytes
        self._change[last + 1] -= nbytes


@dataclass(frozen=True)
class Unit:
    """Values that are rebuilt together.

    Args:
        targets: The values.
        held: From when to when a rebuilt copy of which value is held.
        rebuilds: When they are rebuilt.
    """

    targets: frozenset[int]
    held: tuple[tuple[int, Use], ...]
    rebuilds: tuple[int, ...]


def dropped_by(actions: Actions) -> set[int]:
    """Values that are not at hand in backward until they are rebuilt."""
    return {value for value, action in actions.items() if action.kind == "recompute"}


def units_of(actions: Actions, timeline: Timeline) -> list[Unit]:
    """What is rebuilt together; values that backward never asks for are not rebuilt at all."""
    segments: dict[str, list[int]] = {}
    units = []
    for value, action in actions.items():
        if action.kind != "recompute" or not timeline.uses[value]:
            continue
        if action.segment is not None:
            segments.setdefault(action.segment, []).append(value)
        else:
            uses = timeline.uses[value]
            units.append(Unit(frozenset([value]), tuple((value, use) for use in uses), tuple(u.first for u in uses)))
    return units + [_segment_unit(values, timeline) for values in segments.values()]


def _segment_unit(values: list[int], timeline: Timeline) -> Unit:
    wholes = [(value, use) for value in values if (use := timeline.whole(value)) is not None]
    first = min(use.first for _, use in wholes)
    held = tuple((value, Use(first, use.last, use.count)) for value, use in wholes)
    return Unit(frozenset(values), held, (first,))
