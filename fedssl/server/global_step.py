"""One step of the global model a round, along the aggregate of the clients' updates."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.optim import Optimizer

from fedssl.protocol.compression import Compression, unpack_update
from fedssl.protocol.messages import Parts, Tensors, flatten, part_of, unflatten
from fedssl.protocol.parts import PartitionedModel
from fedssl.server.aggregation import Aggregation
from fedssl.server.distance import ClientDistance
from fedssl.server.participation import Participation
from fedssl.server.updates import MAX_UPDATE, ReceivedUpdates

logger = logging.getLogger(__name__)


class NonFiniteModelError(ArithmeticError):
    """The global model has NaN or infinite values at the end of a round."""


class GlobalStep(ABC):
    """Turns a round's updates into a change of the global model.

    A run is :meth:`begin`, and for each round :meth:`begin_round`, :meth:`correction` for each task, :meth:`finish`
    once the updates are in, and :meth:`check_finite`.

    Attributes:
        rule: Aggregation rule; absent in a dry run, which aggregates nothing.
        optimizer: Server optimizer, likewise.
    """

    rule: Aggregation
    optimizer: Optimizer

    def begin(self, participation: Participation, rounds: int) -> None:
        """Begin a run.

        Raises:
            ValueError: The rule does not fit the settings.
        """

    @abstractmethod
    def begin_round(self, names: list[str], lr_factor: float = 1.0) -> ReceivedUpdates:
        """Open a round in which these parts are trained, at a multiple of the clients' learning rate."""

    @abstractmethod
    def correction(self, client_id: int, names: list[str]) -> Parts:
        """Return what a client adds to the gradients of these parts; empty unless the rule corrects."""

    @abstractmethod
    def finish(self, updates: ReceivedUpdates, round_: int, step: Callable[[], Any] | None = None) -> set[str]:
        """Change the model, and return the names of the parts that changed.

        Args:
            updates: Updates of the round.
            round_: Communication round, from 0.
            step: Steps the optimizer; ``optimizer.step`` unless a driver passes its own wrapper.
        """

    def check_finite(self, round_: int) -> None:
        """End the run before a broken model gets into a checkpoint.

        Raises:
            NonFiniteModelError: A tensor is not finite.
        """


class AggregatedStep(GlobalStep):
    """Step of a server optimizer along the aggregate of the clients' updates.

    Args:
        model: Global model.
        rule: Combines the clients' updates.
        optimizer: Steps the model along ``global - aggregate``; SGD with lr 1 is FedAvg.
        max_update: Largest change of a tensor that a client may give, see ``ReceivedUpdates``.
        measure_distance: Measure how far the local models of a round are apart.
        compression: Unpacks what clients send; ``None``: they send the weights.
    """

    def __init__(
        self,
        model: PartitionedModel,
        rule: Aggregation,
        optimizer: Optimizer,
        *,
        max_update: float = MAX_UPDATE,
        measure_distance: bool = False,
        compression: Compression | None = None,
    ) -> None:
        self.model = model
        self.rule = rule
        self.optimizer = optimizer
        self.max_update = max_update
        self.measure_distance = measure_distance
        self.compression = compression

    def begin(self, participation: Participation, rounds: int) -> None:
        """Begin a run of the rule."""
        self.rule.begin(participation, rounds)

    def correction(self, client_id: int, names: list[str]) -> Parts:
        """Ask the rule."""
        return unflatten(self.rule.correction(client_id, self.model.parameters(names)))

    def begin_round(self, names: list[str], lr_factor: float = 1.0) -> ReceivedUpdates:
        """Begin a round of the rule with the global tensors."""
        reference = flatten(self.model.read(names))
        self.rule.begin_round({key: tensor for key, tensor in reference.items() if tensor.is_floating_point()})
        weights = self.model.parameters(names)
        return ReceivedUpdates(
            reference,
            self.rule.add,
            self.max_update,
            distance=ClientDistance(reference, weights) if self.measure_distance else None,
            unpack=partial(unpack_update, self.compression, weights=weights.keys()) if self.compression else None,
            lr_factor=lr_factor,
        )

    def finish(self, updates: ReceivedUpdates, round_: int, step: Callable[[], Any] | None = None) -> set[str]:
        """Aggregate the updates and step the optimizer."""
        changed = self._aggregate(updates, round_)
        (step or self.optimizer.step)()
        self.optimizer.zero_grad(set_to_none=True)
        return changed

    def check_finite(self, round_: int) -> None:
        """Look at every tensor.

        No update that is taken in breaks the model at once. A server optimizer with a large learning rate can, and a
        liar who pushes a mean as far as is allowed, round after round.
        """
        tensors = flatten(self.model.read(self.model.parts))
        # Read at once: each reading would have the host wait for a GPU.
        finite = torch.stack([torch.isfinite(tensor).all() for tensor in tensors.values()])
        if not finite.all():
            key = next(key for key, sound in zip(tensors, finite, strict=True) if not sound)
            raise NonFiniteModelError(
                f"round {round_}: {key} of the global model is not finite after {type(self.rule).__name__}, "
                f"{type(self.optimizer).__name__} and calibration; the checkpoint of the round before is good"
            )

    def _aggregate(self, updates: ReceivedUpdates, round_: int) -> set[str]:
        """Give the optimizer its gradients, and the model its counters."""
        rule, reference = self.rule, updates.reference
        if not updates.trained and not rule.always_steps:
            return set()
        aggregate = rule.finish()
        for part, reason in rule.refused.items():
            logger.warning("round %d: %s keeps its values: %s", round_, part, reason)
        given = aggregate if rule.always_steps else {key: aggregate[key] for key in updates.given}
        moved = {key: tensor for key, tensor in given.items() if part_of(key) not in rule.refused}
        self._set_gradients(reference, moved)
        counters = updates.counters if rule.takes_counters else {}
        counted = {key: counter for key, counter in counters.items() if part_of(key) not in rule.refused}
        for key, counter in counted.items():
            reference[key].copy_(counter)
        return {part_of(key) for key in (*moved, *counted)}

    @torch.no_grad()
    def _set_gradients(self, reference: Tensors, aggregate: Tensors) -> None:
        """Set ``global - aggregate`` as gradients for the server optimizer; buffers take the aggregate.

        A tensor that no client gave gets no gradient, so that neither momentum nor weight decay moves it.
        """
        for name in dict.fromkeys(map(part_of, reference)):
            module = self.model.parts[name]
            parameters = dict(module.named_parameters())
            for key, own in module.state_dict().items():
                value = aggregate.get(f"{name}/{key}")
                if key in parameters and value is not None:
                    parameters[key].grad = own - value
                elif value is not None:
                    own.copy_(value)
