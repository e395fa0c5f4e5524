"""Search for the actions that keep a step within a budget and add least time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from layerwise.memory.codec import WIDTHS
from layerwise.memory.step import KEEP, Action, Actions, ChangedInPlaceError

MACS_A_SECOND = 4e10
BYTES_A_SECOND = 1e9
CODEC_BYTES_A_SECOND = 7e8
"""Rates of a nominal device, about those of one core of a server: plans depend on their ratios only."""

TIERS = ((), *(WIDTHS[: count + 1] for count in range(len(WIDTHS))))
RECOMPUTE = tuple(Action(kind) for kind in ("nothing", "cheap", "all"))


class InfeasibleBudgetError(ValueError):
    """A memory budget that no plan meets.

    Args:
        message: Says so.
        floor_bytes: Least peak that can be reached.
    """

    def __init__(self, message: str, floor_bytes: int) -> None:
        super().__init__(message)
        self.floor_bytes = floor_bytes


@dataclass(frozen=True)
class Outcome:
    """A step that was run with actions, on tensors without data.

    Args:
        peak: Most bytes of tensors alive at once.
        activations: Most bytes held for backward at once.
        macs: Multiply-accumulates of the whole step; counted without actions only.
        held: Bytes that the forward pass of each segment leaves behind.
        inputs: Bytes of the inputs of each segment.
        segment_macs: Those of the forward pass of each segment.
    """

    peak: int
    activations: int
    macs: int
    held: Mapping[str, int]
    inputs: Mapping[str, int]
    segment_macs: Mapping[str, int]


Run = Callable[[Actions], Outcome]


@dataclass(frozen=True)
class Plan:
    """Actions and their outcome.

    Args:
        actions: By segment; those that keep everything are left out.
        peak: Predicted peak memory of the step.
        share: Predicted added time on a nominal device, as a share of the step's.
    """

    actions: Actions
    peak: int
    share: float


@dataclass(frozen=True)
class _Choice:
    """An action for a segment: bytes that it saves and seconds that it adds."""

    action: Action
    saved: float
    seconds: float


class Search:
    """Actions by merit, from few runs of the step.

    Bytes and operations of every segment under every action come from runs in which all segments have the same
    action; the peak of a plan is always that of the step run with it.

    Args:
        run: Runs the step with actions.
    """

    def __init__(self, run: Run) -> None:
        self._peaks: dict[tuple[tuple[str, Action], ...], Outcome] = {}
        self._run = run

    def __call__(self, actions: Actions) -> Outcome:
        """The outcome of actions; each is run once."""
        key = tuple(sorted(((name, action) for name, action in actions.items() if action != KEEP), key=str))
        if key not in self._peaks:
            self._peaks[key] = self._run(dict(key))
        return self._peaks[key]

    @property
    def names(self) -> list[str]:
        """The segments."""
        return list(self({}).held)

    @cached_property
    def _possible(self) -> list[Action]:
        """Ways to recompute; a cheap one is none where a result that it keeps is changed in place."""
        possible = []
        for action in RECOMPUTE:
            with suppress(ChangedInPlaceError):
                self.uniform(action)
                possible.append(action)
        return possible

    def uniform(self, action: Action) -> Outcome:
        """The step with one action everywhere."""
        return self(dict.fromkeys(self.names, action))

    def evenly(self, bits: int) -> Plan:
        """Everything kept in one width."""
        return self.priced(dict.fromkeys(self.names, Action(bits=bits)))

    def least(self) -> int:
        """Least peak that can be reached."""
        return min(self._end(tier).peak for tier in (TIERS[0], TIERS[-1]))

    def fastest(self, budget: int) -> Plan:
        """The plan of least added time found within a budget.

        Raises:
            InfeasibleBudgetError: There is none.
        """
        if self({}).peak <= budget:
            return self.priced({})
        if self._end(TIERS[0]).peak <= budget:
            return self._shortest(TIERS[0], budget)
        least = self.least()
        for tier in TIERS[1:] if least <= budget else ():
            if self._end(tier).peak <= budget:
                return self._shortest(tier, budget)
        raise InfeasibleBudgetError(f"budget of {budget} bytes cannot be met: {least} bytes can be reached", least)

    def _end(self, tier: tuple[int, ...]) -> Plan:
        return self.priced(dict(self.walk(tier)))

    def _shortest(self, tier: tuple[int, ...], budget: int) -> Plan:
        """The first moves that meet a budget which all of them meet."""
        walk = self.walk(tier)
        first = bisect_left(range(len(walk)), True, key=lambda n: self.priced(dict(walk[:n])).peak <= budget)
        return self.priced(dict(walk[:first]))

    def priced(self, actions: Actions) -> Plan:
        """Actions as a plan."""
        outcome, kept = self(actions), self({})
        seconds = sum(self._seconds(name, action) for name, action in actions.items())
        chosen = {name: action for name, action in actions.items() if action != KEEP}
        return Plan(chosen, outcome.peak, seconds * MACS_A_SECOND / max(1, kept.macs))

    def _seconds(self, name: str, action: Action) -> float:
        return next(each.seconds for each in self.choices(name, WIDTHS if action.bits else ()) if each.action == action)

    def choices(self, name: str, widths: Sequence[int]) -> list[_Choice]:
        """Every action for a segment."""
        kept, output, found = self({}), self.uniform(RECOMPUTE[-1]).held[name], []
        for plain in self._possible:
            held = self.uniform(plain).held[name]
            macs = kept.segment_macs[name] if plain.recompute == "all" else 0
            saved = kept.held[name] - held
            seconds = macs / MACS_A_SECOND + max(0, saved) / BYTES_A_SECOND
            found.append(_Choice(plain, saved, seconds))
            # A segment that recomputes everything leaves its output only, which the next one compresses as its input.
            packed = max(0, held - output) + kept.inputs[name]
            for bits in widths:
                action, gain = Action(plain.recompute, bits), packed * (1 - bits / 32)
                found.append(_Choice(action, saved + gain, seconds + packed / CODEC_BYTES_A_SECOND))
        return found

    def walk(self, widths: Sequence[int]) -> list[tuple[str, Action]]:
        """Moves from keeping everything to saving most, best first: the greedy solution of a knapsack of choices.

        Only a segment's efficient choices count: those on the convex hull of saved bytes over added seconds.
        """
        moves = []
        for name in self.names:
            previous = _Choice(KEEP, 0.0, 0.0)
            for choice in _hull(self.choices(name, widths)):
                merit = (choice.saved - previous.saved) / max(1e-9, choice.seconds - previous.seconds)
                moves.append((merit, name, choice))
                previous = choice
        return [(name, choice.action) for _, name, choice in sorted(moves, key=lambda move: -move[0])]


def _hull(choices: Sequence[_Choice]) -> list[_Choice]:
    """Choices that save ever more at ever worse merit, without the first, which keeps everything."""
    hull: list[_Choice] = [_Choice(KEEP, 0.0, 0.0)]
    while True:
        last = hull[-1]
        better = [choice for choice in choices if choice.saved > last.saved]
        if not better:
            return hull[1:]
        hull.append(max(better, key=lambda c: (c.saved - last.saved) / max(1e-9, c.seconds - last.seconds)))
