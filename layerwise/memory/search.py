"""Greedy choice of what to recompute and what to compress."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from layerwise.memory.graph import StepTrace
from layerwise.memory.moves import Actions, Move, Moves
from layerwise.memory.plan import Action
from layerwise.memory.simulation import Outcome, Simulation


@dataclass(frozen=True)
class State:
    """Actions, what they lead to, and the bytes that all values take when backward begins."""

    actions: Actions
    outcome: Outcome
    held: int

    @cached_property
    def until(self) -> list[int]:
        """Bytes at the worst moment before each unpacking."""
        return list(accumulate(self.outcome.profile, max, initial=self.held))

    @property
    def peak(self) -> int:
        """Bytes at the worst moment."""
        return self.outcome.peak

    @property
    def seconds(self) -> float:
        """Added time."""
        return self.outcome.seconds


class Search:
    """A greedy walk over the moves that a plan may consist of.

    Args:
        trace: The step.
        recompute: Whether values may be recomputed.
        bits: Widths to which they may be compressed.
    """

    def __init__(self, trace: StepTrace, recompute: bool, bits: tuple[int, ...]) -> None:
        self._simulation = Simulation(trace)
        self._moves = Moves(self._simulation, recompute, bits)

    def start(self) -> State:
        """Everything kept."""
        kept = self._simulation.outcome({})
        assert kept is not None
        return State({}, kept, self._simulation.trace.saved_bytes)

    def walk(self, start: State) -> list[State]:
        """States of falling peak, from a first one to where no move helps any more.

        Each adds the move that frees most bytes at the worst moment per second it costs.
        """
        states = [start]
        while (state := self._next(states[-1])) is not None:
            states.append(state)
        return states

    def clean(self, state: State, budget: int) -> State:
        """Undoes moves that the budget does not need, those that cost most time first, and speeds up the others."""
        for moves in (self._moves.undos, self._moves.replacements, self._moves.undos):
            state = self._accept(state, moves(state.actions), budget)
        return state

    def widen(self, state: State, budget: int) -> State:
        """Gives compressed values more bits as far as the budget allows; that takes no time."""
        return self._accept(state, self._moves.widenings(state.actions), budget)

    def _accept(self, state: State, moves: Iterable[Move], budget: int) -> State:
        for move in moves:
            if self._at_least(state, move) > budget:
                continue
            changed = self._try(state, move)
            if changed is not None and changed.peak <= budget and changed.seconds <= state.seconds:
                state = changed
        return state

    def _at_least(self, state: State, move: Move) -> int:
        """A bound below the peak that a move would lead to, without simulating it."""
        uses = self._simulation.timeline.uses
        first = min((uses[value][0].first for value in move if uses[value]), default=0)
        return self._more(state, move) + (state.until[first] if state.outcome.reread.isdisjoint(move) else state.held)

    def _more(self, state: State, move: Move) -> int:
        """Bytes that a move adds to what values take from when backward begins to their first use."""
        held = self._simulation.held_bytes
        return sum(held(value, action) - held(value, state.actions.get(value)) for value, action in move.items())

    def _next(self, state: State) -> State | None:
        before = _pressure(state.outcome)
        for move in self._moves.by_merit(state.actions, state.outcome.worst):
            changed = self._try(state, move)
            if changed is not None and _pressure(changed.outcome) < before:
                return changed
        return None

    def _try(self, state: State, move: Move) -> State | None:
        merged: dict[int, Action | None] = {**state.actions, **move}
        actions = {value: action for value, action in merged.items() if action is not None}
        outcome = self._simulation.outcome(actions)
        return None if outcome is None else State(actions, outcome, state.held + self._more(state, move))


def _pressure(outcome: Outcome) -> tuple[int, int]:
    """The peak, and how often it is reached."""
    return outcome.peak, outcome.profile.count(outcome.peak)
