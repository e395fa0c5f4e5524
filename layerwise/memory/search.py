"""Search for the fastest actions (keep, recompute, compress) that hold a training step within a memory budget."""

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
"""Rates of a nominal device, about those of one server core: plans depend only on their ratios."""

# Bit widths that may be used. Each tier allows a narrower one, which disturbs gradients more.
TIERS = ((), *(WIDTHS[: count + 1] for count in range(len(WIDTHS))))
RECOMPUTE = tuple(Action(kind) for kind in ("nothing", "cheap", "all"))


class InfeasibleBudgetError(ValueError):
    """Memory budget that no plan can meet.

    Args:
        message: Text of the error.
        floor_bytes: Lowest peak that can be reached, in bytes.
    """

    def __init__(self, message: str, floor_bytes: int) -> None:
        super().__init__(message)
        self.floor_bytes = floor_bytes


@dataclass(frozen=True)
class PlanOutcome:
    """Measurements of a step that ran with actions, on tensors without data.

    Args:
        peak: Peak bytes of tensors alive at once.
        activations: Peak bytes held for backward at once.
        macs: Multiply-accumulates of the whole step; counted only without actions.
        held: Bytes that each segment's forward pass leaves behind.
        inputs: Bytes of each segment's inputs.
        segment_macs: Multiply-accumulates of each segment's forward pass.
    """

    peak: int
    activations: int
    macs: int
    held: Mapping[str, int]
    inputs: Mapping[str, int]
    segment_macs: Mapping[str, int]


Run = Callable[[Actions], PlanOutcome]


@dataclass(frozen=True)
class ActivationPlan:
    """Actions together with their peak memory and added time.

    Args:
        actions: Action of each segment; segments that keep everything are left out.
        peak: Predicted peak memory of the step in bytes.
        share: Predicted added time on a nominal device, as a fraction of the step's.
    """

    actions: Actions
    peak: int
    share: float


@dataclass(frozen=True)
class _Choice:
    """Action for one segment, with the bytes it saves and the seconds it adds."""

    action: Action
    saved: float
    seconds: float


class Search:
    """Greedy search for actions from few runs of the step.

    The savings of each action are measured in runs in which all segments share the action, instead of one run for each
    pair. The peak of a plan is never a sum of these: the step is run with the plan itself.

    Args:
        run: Function that runs the step with the given actions.
    """

    def __init__(self, run: Run) -> None:
        self._peaks: dict[tuple[tuple[str, Action], ...], PlanOutcome] = {}
        self._run = run

    def __call__(self, actions: Actions) -> PlanOutcome:
        """Return the outcome of actions; each combination runs once."""
        key = tuple(sorted(((name, action) for name, action in actions.items() if action != KEEP), key=str))
        if key not in self._peaks:
            self._peaks[key] = self._run(dict(key))
        return self._peaks[key]

    @property
    def names(self) -> list[str]:
        """Names of the segments."""
        return list(self({}).held)

    @cached_property
    def _possible(self) -> list[Action]:
        """Ways to recompute; ``cheap`` is left out where a result that it keeps is changed in place."""
        possible = []
        for action in RECOMPUTE:
            with suppress(ChangedInPlaceError):
                self.uniform(action)
                possible.append(action)
        return possible

    def uniform(self, action: Action) -> PlanOutcome:
        """Return the outcome with one action for all segments."""
        return self(dict.fromkeys(self.names, action))

    def evenly(self, bits: int) -> ActivationPlan:
        """Return the plan that compresses everything to one bit width."""
        return self.priced(dict.fromkeys(self.names, Action(bits=bits)))

    def min_peak(self) -> int:
        """Return the lowest peak that can be reached, in bytes."""
        # Packing needs working memory too, so the strongest compression may peak above plain recomputation.
        return min(self._end(tier).peak for tier in (TIERS[0], TIERS[-1]))

    def fastest(self, budget: int) -> ActivationPlan:
        """Return the fastest plan found within a budget.

        Raises:
            InfeasibleBudgetError: No plan meets the budget.
        """
        if self({}).peak <= budget:
            return self.priced({})
        # Recomputation is exact, compression disturbs gradients: bit widths are lowered only when recomputation fails.
        if self._end(TIERS[0]).peak <= budget:
            return self._shortest(TIERS[0], budget)
        least = self.min_peak()
        for tier in TIERS[1:] if least <= budget else ():
            if self._end(tier).peak <= budget:
                return self._shortest(tier, budget)
        raise InfeasibleBudgetError(f"budget of {budget} bytes cannot be met: {least} bytes can be reached", least)

    def _end(self, tier: tuple[int, ...]) -> ActivationPlan:
        return self.priced(dict(self.walk(tier)))

    def _shortest(self, tier: tuple[int, ...], budget: int) -> ActivationPlan:
        """Return the shortest prefix of the moves that meets a budget which all moves together meet."""
        walk = self.walk(tier)
        # Every probe runs the step, so the prefix is found by bisection. A segment's later move
        # replaces its earlier one in the dictionary.
        first = bisect_left(range(len(walk)), True, key=lambda n: self.priced(dict(walk[:n])).peak <= budget)
        return self.priced(dict(walk[:first]))

    def priced(self, actions: Actions) -> ActivationPlan:
        """Return actions as a plan, with their peak and added time."""
        outcome, kept = self(actions), self({})
        seconds = sum(self._seconds(name, action) for name, action in actions.items())
        chosen = {name: action for name, action in actions.items() if action != KEEP}
        return ActivationPlan(chosen, outcome.peak, seconds * MACS_A_SECOND / max(1, kept.macs))

    def _seconds(self, name: str, action: Action) -> float:
        return next(each.seconds for each in self.choices(name, WIDTHS if action.bits else ()) if each.action == action)

    def choices(self, name: str, widths: Sequence[int]) -> list[_Choice]:
        """Return every action for a segment with its savings and costs."""
        kept, output, found = self({}), self.uniform(RECOMPUTE[-1]).held[name], []
        for plain in self._possible:
            held = self.uniform(plain).held[name]
            macs = kept.segment_macs[name] if plain.recompute == "all" else 0
            saved = kept.held[name] - held
            # Products cost their operations; all else that was dropped is bound by memory, and costs its bytes.
            seconds = macs / MACS_A_SECOND + max(0, saved) / BYTES_A_SECOND
            found.append(_Choice(plain, saved, seconds))
            # A segment that recomputes everything leaves its output only, which the next one compresses as its input.
            packed = max(0, held - output) + kept.inputs[name]
            for bits in widths:
                action, gain = Action(plain.recompute, bits), packed * (1 - bits / 32)
                found.append(_Choice(action, saved + gain, seconds + packed / CODEC_BYTES_A_SECOND))
        return found

    def walk(self, widths: Sequence[int]) -> list[tuple[str, Action]]:
        """Order the moves from keeping everything to saving most, best first: the greedy solution of a knapsack.

        A segment contributes only efficient choices: those on the convex hull of saved bytes over added seconds.
        """
        moves = []
        for name in self.names:
            previous = _Choice(KEEP, 0.0, 0.0)
            for choice in _hull(self.choices(name, widths)):
                merit = (choice.saved - previous.saved) / max(1e-9, choice.seconds - previous.seconds)
                moves.append((merit, name, choice))
                previous = choice
        # Along a hull merits fall and the sort is stable, so that a segment's moves keep their order.
        return [(name, choice.action) for _, name, choice in sorted(moves, key=lambda move: -move[0])]


def _hull(choices: Sequence[_Choice]) -> list[_Choice]:
    """Return the choices on the upper convex hull, by rising savings, without the first, which keeps everything."""
    hull: list[_Choice] = [_Choice(KEEP, 0.0, 0.0)]
    while True:
        last = hull[-1]
        better = [choice for choice in choices if choice.saved > last.saved]
        if not better:
            return hull[1:]
        hull.append(max(better, key=lambda c: (c.saved - last.saved) / max(1e-9, c.seconds - last.seconds)))
