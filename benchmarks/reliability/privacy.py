"""Attack on private rounds: an attacker must not learn more from their models than epsilon allows."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scipy.stats import beta
from torch import Tensor

from benchmarks.record import write_record
from benchmarks.reliability.tiny import answer, directions, tiny_server, weights
from fedssl.protocol.messages import Failure
from fedssl.server.aggregation import Aggregation, PrivateMean, WeightedMean
from fedssl.server.aggregation.private_mean import epsilon_of

DELTA, CLIP = 1e-5, 1.0
CONFIDENCE = 0.999
NOTHING = Failure(0, "too few images", skipped=True)

Guess = Callable[[Tensor], Tensor]


class NoiseWhereGiven(PrivateMean):
    """With the hole that there was: nothing moves where nobody gave anything."""

    always_steps = False


def private(noise: float, kind: type[PrivateMean] = PrivateMean) -> PrivateMean:
    """A rule with some noise, for one round as well as for many."""
    return kind(CLIP, noise, DELTA, math.inf)


class Attack:
    """Sees the global model before and after rounds and scores how much it looks as if client 0 gave its update.

    Client 0 gives an update of twice the clip in a direction that the attacker knows, the others give zero updates:
    the worst case that the guarantee is about. In the neighbouring run client 0 gives nothing.

    Args:
        rule: What the server aggregates with.
        clients: All of them take part in every round.
        rounds: Of a run; the score is that of all its models.
    """

    def __init__(self, rule: Aggregation, clients: int, rounds: int = 1) -> None:
        self._server = tiny_server(rule, clients)
        self._rounds, self._clients = rounds, clients
        self._own = weights(self._server)
        self._first = {key: tensor.clone() for key, tensor in self._own.items()}
        self._change = directions(self._server, 2 * CLIP, 3)

    def scores(self, present: bool, trials: int) -> Tensor:
        """The likelihood ratio's statistic of each trial; infinite where a tensor did not move at all."""
        return torch.tensor([self._run(present) for _ in range(trials)])

    def _run(self, present: bool) -> float:
        for key, tensor in self._own.items():
            tensor.copy_(self._first[key])
        # Another run has another key; here it is drawn from a seed, so that the trials can be repeated.
        key = torch.randint(256, (32,), dtype=torch.uint8).numpy().tobytes()
        self._server.aggregation.load_state_dict({"key": key.hex()})
        return sum(self._round(present) for _ in range(self._rounds))

    def _round(self, present: bool) -> float:
        before = {key: tensor.clone() for key, tensor in self._own.items()}
        server = self._server
        server.begin_round()
        others = [answer(server, client, {}) for client in range(1, self._clients)]
        server.end_round([answer(server, 0, self._change) if present else NOTHING, *others])
        moved = {key: tensor - before[key] for key, tensor in self._own.items()}
        if any(not each.any() for each in moved.values()):
            return -math.inf
        return sum((moved[key] * self._change[key]).sum().item() for key in moved)


def audit(rule: Aggregation, clients: int, trials: int, rounds: int = 1) -> float:
    """Epsilon that the attack proves at a confidence of 99.9 %; the promise is broken if it is above what was promised.

    The guess is chosen on one half of the trials and judged on the other with Clopper and Pearson's bounds on how often
    it errs (Jagielski, Ullman, Oprea 2020, arXiv 2006.07709).
    """
    torch.manual_seed(0)
    attack = Attack(rule, clients, rounds)
    present, absent = attack.scores(True, trials), attack.scores(False, trials)
    half = trials // 2
    guesses: list[Guess] = [torch.isfinite]
    for threshold in present[:half].tolist():
        guesses += [partial(torch.lt, torch.tensor(threshold)), partial(torch.gt, torch.tensor(threshold))]
    best = max(guesses, key=lambda guess: proven(guess(present[:half]), guess(absent[:half])))
    return proven(best(present[half:]), best(absent[half:]))


def proven(yes: Tensor, no: Tensor) -> float:
    """The least epsilon with which one could say "present" so often in either case."""
    missed, mistaken = at_most(int((~yes).sum()), len(yes)), at_most(int(no.sum()), len(no))
    return math.log(max(1 - missed - DELTA, 1e-12) / mistaken)


def at_most(hits: int, trials: int) -> float:
    """Upper bound of a probability."""
    return float(beta.ppf(1 - (1 - CONFIDENCE) / 2, hits + 1, trials - hits)) if hits < trials else 1.0


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``reliability_privacy``."""
    command = commands.add_parser("reliability_privacy", help=__doc__)
    command.add_argument("--trials", type=int, default=600, help="Runs of either neighbour.")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace, folder: Path) -> None:
    """Attacks private rounds, and rounds as they were before."""
    cases: list[tuple[str, Callable[[float], Aggregation], int, int]] = [
        ("PrivateMean", private, 1, 1),
        ("PrivateMean", private, 2, 1),
        ("PrivateMean", private, 2, 4),
        ("noise only where a client gave something", partial(private, kind=NoiseWhereGiven), 1, 1),
        ("WeightedMean, no noise", lambda noise: WeightedMean(), 2, 1),
    ]
    table: list[dict[str, Any]] = []
    for name, rule, clients, rounds in cases:
        for noise in (2.0, 4.0):
            found = audit(rule(noise), clients, arguments.trials, rounds)
            promised = epsilon_of(noise, rounds, DELTA)
            row: dict[str, Any] = {"rule": name, "clients a round": clients, "rounds": rounds, "noise": noise}
            row |= {"epsilon promised": f"{promised:.2f}", "epsilon proven by the attack": f"{max(0.0, found):.2f}"}
            table.append(row | {"kept": "yes" if found <= promised else "**no**"})
            print(table[-1], flush=True)
    notes = f"""
A client's update against nothing from it, through the real server: {arguments.trials} runs of either case, guessed by
the likelihood ratio; delta {DELTA:g}, confidence {CONFIDENCE:.1%}. An attack proves a lower bound, which can be no
more than {math.log(1 / at_most(0, arguments.trials // 2)):.1f} with so many runs. The last two rules show that it finds
what is there.
"""
    write_record(folder, "reliability_privacy", "Can neighbours be told apart?", table, table, notes)
