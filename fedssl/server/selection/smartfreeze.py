"""SmartFreeze's participant selector (arXiv 2408.09101): the most useful clients of each community."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.metrics.pairwise import cosine_similarity

from fedssl.server.selection.selector import Candidate, LossSelector, Outcome, by_id
from fedssl.utils.seeding import derive_seed
from ssl_methods import check_at_least

NO_COMMUNITY = -1
ROUNDING = 1e-9
"""Tolerance between similarities that would be equal without rounding."""


class SmartFreezeSelector(LossSelector):
    r"""Selector that divides the participants among communities and takes the most useful candidates of each.

    The paper says that its selector weighs memory, data and speed and groups clients by community detection
    ("RL-CD"); we could read no more than that. **All of this is our reading**; compare it with
    ``fedssl.server.selection.RandomSelector``.

    - Memory: only clients that hold the stage are candidates.
    - Utility: :math:`n \sqrt{\overline{\ell^2}} \min(1, T / t)^\alpha` of a client with *n* images and a predicted
      round of *t* seconds, *T* being the candidates' median. The loss is that of its last round. Clients never chosen
      before come first, in random order. Clients that were chosen but never answered count with the mean loss of the
      others. A client whose loss was not finite has utility 0 until it is explored again.
    - Communities: Louvain's method, with a seed fixed for the run, on the cosine similarities of the clients' first
      updates in the first rounds of each stage. Clients without a usable update form a group of their own.
    - Participants: each slot explores with the given probability, that is, it goes to any candidate. The other slots
      are divided among the communities in proportion to their candidates' images.

    Args:
        alpha: Exponent of the penalty for slow clients; 0 for none.
        exploration: Probability that a slot explores.
        probe_rounds: Rounds at the start of each stage whose updates form the communities.

    Raises:
        ValueError: A setting is out of its range.
    """

    wants_updates: ClassVar[bool] = True

    def __init__(self, alpha: float = 2.0, exploration: float = 0.1, probe_rounds: int = 5) -> None:
        check_at_least(0, alpha=alpha)
        check_at_least(0, 1, exploration=exploration)
        check_at_least(1, probe_rounds=probe_rounds)
        self.alpha = alpha
        self.exploration = exploration
        self.probe_rounds = probe_rounds

    def begin(self, num_clients: int, seed: int) -> None:
        """Forget all losses and communities."""
        super().begin(num_clients, seed)
        self._seed = derive_seed(seed, "communities")
        self._asked: set[int] = set()
        self.begin_stage(0)

    def begin_stage(self, index: int) -> None:
        """Forget the communities, since other layers train now and their updates form new ones; keep the losses."""
        self._updates: dict[int, np.ndarray] = {}
        self._probed = 0
        self._community: dict[int, int] = {}

    def select(self, candidates: Sequence[Candidate], size: int, round_: int, rng: np.random.Generator) -> list[int]:
        """Choose the most useful candidates of every community, and a few at random."""
        size = min(size, len(candidates))
        explored = int(rng.binomial(size, self.exploration))
        groups = self._groups(self._ranked(candidates, rng))
        images = [sum(member.num_images for member in group) for group in groups]
        slots = proportional_split(size - explored, images, [len(group) for group in groups], rng.random())
        chosen = [c.client_id for group, share in zip(groups, slots, strict=True) for c in group[:share]]
        others = sorted({candidate.client_id for candidate in candidates} - set(chosen))
        chosen += rng.choice(others, explored, replace=False).tolist()
        self._asked.update(chosen)
        return sorted(chosen)

    def observe(self, round_: int, outcomes: Sequence[Outcome]) -> None:
        """Record the losses and, in the first rounds of a stage, form communities from the updates."""
        super().observe(round_, outcomes)
        if self._probed < self.probe_rounds:
            self._probe({o.client_id: o.update for o in outcomes if o.update is not None and _usable(o.update)})

    def state_dict(self) -> dict[str, Any]:
        """Losses, clients chosen so far, communities, and the updates of an unfinished probe."""
        return super().state_dict() | {
            "asked": sorted(self._asked),
            "community": dict(self._community),
            "probed": self._probed,
            "updates": {client: torch.from_numpy(update) for client, update in self._updates.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore losses, clients chosen so far, communities and updates."""
        super().load_state_dict(state)
        self._asked = set(state["asked"])
        self._community = dict(state["community"])
        self._probed = int(state["probed"])
        self._updates = {client: update.numpy() for client, update in state["updates"].items()}

    def _ranked(self, candidates: Sequence[Candidate], rng: np.random.Generator) -> list[Candidate]:
        """Sort the candidates by utility, largest first; equals stand in random order."""
        reference = float(np.median([c.seconds for c in candidates])) if candidates else 0.0
        ordered = by_id(candidates)
        shuffled = [ordered[position] for position in rng.permutation(len(ordered))]
        return sorted(shuffled, key=lambda candidate: -self._utility(candidate, reference))

    def _utility(self, candidate: Candidate, reference: float) -> float:
        if candidate.client_id not in self._asked:
            return math.inf
        useful = data_utility(candidate.num_images, self.squared_loss(candidate.client_id))
        return useful * speed_factor(candidate.seconds, reference, self.alpha)

    def _groups(self, ranked: Sequence[Candidate]) -> list[list[Candidate]]:
        """Group the candidates by community and keep their order."""
        groups: dict[int, list[Candidate]] = {}
        for candidate in ranked:
            groups.setdefault(self._community.get(candidate.client_id, NO_COMMUNITY), []).append(candidate)
        return [groups[label] for label in sorted(groups)]

    def _probe(self, updates: Mapping[int, np.ndarray]) -> None:
        """Add the updates of clients that have none yet in this stage, and form the communities anew."""
        if not updates:
            return
        for client, update in updates.items():
            self._updates.setdefault(client, np.array(update, dtype=np.float32))
        clients = sorted(self._updates)
        communities = find_communities(clients, np.stack([self._updates[client] for client in clients]), self._seed)
        self._community = {client: label for label, members in enumerate(communities) for client in members}
        self._probed += 1
        if self._probed == self.probe_rounds:
            self._updates = {}


def data_utility(num_images: int, mean_squared_loss: float) -> float:
    """Utility of a client's data: its images times the root of its mean squared loss.

    The form is that of Oort (Lai et al. 2021, arXiv 2010.06081), with losses of batches instead of samples.
    """
    return num_images * math.sqrt(mean_squared_loss)


def speed_factor(seconds: float, reference: float, alpha: float) -> float:
    """Penalty factor of slow clients: ``min(1, reference / seconds) ** alpha``."""
    return 1.0 if seconds <= reference else (reference / seconds) ** alpha


def _usable(update: np.ndarray) -> bool:
    return bool(np.isfinite(update).all() and update.any())


def find_communities(clients: Sequence[int], updates: np.ndarray, seed: int) -> list[list[int]]:
    """Find communities by Louvain's method (Blondel et al. 2008, arXiv 0803.0476) on the similarity graph.

    Edges weigh ``max(0, cosine)``; those lighter than the mean over all pairs are left out. Edges as heavy as the mean
    stay, so that clients which are all alike stay together.

    Args:
        clients: Client ids in ascending order, N of them.
        updates: Updates of these clients, (N, D).
        seed: Seed of the order in which Louvain's method visits the clients.

    Returns:
        Each community's ids ascending, the community of the smallest id first.
    """
    import networkx as nx  # takes a third of a second

    # scikit-learn takes rows below 1e-15 for zeros: the largest entry of each becomes 1 first
    vectors = np.asarray(updates, dtype=np.float64)
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    cosines = cosine_similarity(vectors / np.where(largest > 0, largest, 1.0))
    weights = np.triu(np.maximum(cosines, 0.0), k=1)
    mean = weights.sum() / max(1, math.comb(len(clients), 2))
    graph = nx.from_numpy_array(np.where(weights >= max(mean - ROUNDING, ROUNDING), weights, 0.0))
    communities = nx.community.louvain_communities(nx.relabel_nodes(graph, dict(enumerate(clients))), seed=seed)
    return sorted(sorted(community) for community in communities)


def proportional_split(size: int, weights: Sequence[float], capacities: Sequence[int], offset: float) -> list[int]:
    """Divide ``size`` slots among groups in proportion to their weights, none above its capacity.

    A group gets its quota rounded down or up. Over uniform offsets its mean is the quota (systematic sampling), so that
    small groups have their turn too.

    Args:
        size: Number of slots; at most the sum of the capacities.
        weights: Weights of the groups, not negative; groups of weight 0 come last.
        capacities: Largest number of slots of each group.
        offset: Random number in [0, 1).
    """
    quotas = capped_quotas(size, weights, capacities)
    bounds = [math.floor(bound + Fraction(offset)) for bound in accumulate(quotas, initial=Fraction(0))]
    return [end - start for start, end in pairwise(bounds)]


def capped_quotas(size: int, weights: Sequence[float], capacities: Sequence[int]) -> list[Fraction]:
    """Exact quotas of ``size`` in proportion to the weights; groups that are not full share the excess of full ones."""
    # Fractions, since quotas in floating point may add up to a little less than ``size`` and lose a slot.
    assert 0 <= size <= sum(capacities)
    exact = [Fraction(weight) for weight in weights]
    fills = [capacity / weight if weight else math.inf for weight, capacity in zip(exact, capacities, strict=True)]
    quotas, left, weight = [Fraction(0)] * len(exact), Fraction(size), sum(exact)
    # In the order in which groups fill up: what a full group cannot take is divided among those after it.
    order = sorted(range(len(exact)), key=lambda i: (fills[i], capacities[i]))
    for position, i in enumerate(order):
        part = exact[i] / weight if weight else Fraction(1, len(order) - position)
        quotas[i] = min(left * part, Fraction(capacities[i]))
        left, weight = left - quotas[i], weight - exact[i]
    return quotas
