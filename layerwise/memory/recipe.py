"""Which operations rebuild dropped values, and the memory that takes."""

from __future__ import annotations

from collections.abc import Collection, Container
from dataclasses import dataclass

from layerwise.memory.graph import StepTrace


@dataclass(frozen=True)
class Recipe:
    """How to rebuild values.

    Args:
        targets: Values to rebuild.
        ops: Operations to run, in order.
        leaves: Resident values that these read.
        dropped: For each operation the values that nothing needs behind it.
        passed: Values made on the way that autograd would have kept.
    """

    targets: frozenset[int]
    ops: tuple[int, ...]
    leaves: frozenset[int]
    dropped: tuple[frozenset[int], ...]
    passed: frozenset[int]

    def seconds(self, trace: StepTrace) -> float:
        """Duration of the operations."""
        return sum(trace.ops[op].seconds for op in self.ops)

    def peak_bytes(self, trace: StepTrace, restored: Container[int]) -> int:
        """Most bytes alive while it runs, targets included, resident values excluded.

        Args:
            trace: The step.
            restored: Leaves that are resident in compressed form only and are restored at their first use.
        """
        sizes: dict[int, int] = {}
        peak = 0
        for number, dropped in zip(self.ops, self.dropped, strict=True):
            op = trace.ops[number]
            for value in op.inputs:
                if value in restored and value in self.leaves:
                    sizes[value] = trace.values[value].nbytes
            for _, value in op.outputs:
                sizes[value] = trace.values[value].nbytes
            for old, new in op.overwritten:
                sizes[new] = sizes.pop(old)
            peak = max(peak, sum(sizes.values()))
            for value in dropped:
                sizes.pop(value, None)
        return peak


def find_recipe(trace: StepTrace, targets: Collection[int], resident: Container[int]) -> Recipe | None:
    """The shortest way from resident values to the targets; ``None`` if there is none.

    Args:
        trace: The step.
        targets: Values to rebuild.
        resident: Values at hand, kept or compressed.
    """
    ops: set[int] = set()
    leaves: set[int] = set()
    made: set[int] = set()
    waiting = list(targets)
    while waiting:
        value = waiting.pop()
        if value in made or value in leaves:
            continue
        if value in resident and value not in targets:
            leaves.add(value)
            continue
        producer = trace.values[value].producer
        if producer is None or not trace.ops[producer].replayable:
            return None
        made.add(value)
        ops.add(producer)
        waiting.extend(trace.ops[producer].inputs)
    ordered = tuple(sorted(ops))
    if any(old in leaves for number in ordered for old, _ in trace.ops[number].overwritten):
        return None
    wanted = frozenset(targets)
    passed = frozenset(made & trace.saved.keys()) - wanted
    return Recipe(wanted, ordered, frozenset(leaves), _dropped(trace, ordered, wanted), passed)


def _dropped(trace: StepTrace, ops: tuple[int, ...], targets: frozenset[int]) -> tuple[frozenset[int], ...]:
    """What each operation uses or makes for the last time."""
    seen = set(targets)
    dropped = []
    for number in reversed(ops):
        op = trace.ops[number]
        touched = {*op.inputs, *(value for _, value in op.outputs), *(new for _, new in op.overwritten)}
        dropped.append(frozenset(touched - seen))
        seen |= touched
    return tuple(reversed(dropped))
