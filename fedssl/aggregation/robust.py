"""What robust rules share: all clients' changes of a layer are seen together."""

from __future__ import annotations

from abc import abstractmethod

from fedssl.aggregation.rule import Aggregation, difference_to
from fedssl.messages import Tensors, part_of
from fedssl.participation import Participation


class RobustAggregation(Aggregation):
    """Combines, layer by layer, the changes of the clients that gave the layer.

    Clients weigh the same, because their numbers of images are their own claims. All changes are held until the end of
    the round, so memory grows with the cohort. A layer is a part that travels as a whole, such as a transformer block.

    Below a number of clients a rule promises nothing: its result would be the plain mean, liars included. A run whose
    cohorts are smaller is refused before it trains. If clients fail, are late or do not train a layer, the layer keeps
    its global value in that round, as if nobody had given it.
    """

    def check(self, participation: Participation, rounds: int) -> None:
        """Refuses cohorts that are too small.

        Raises:
            ValueError: They are.
        """
        if participation.size < self.least():
            raise ValueError(
                f"participation {participation.size} clients a round: {self} needs at least {self.least()}, below that "
                "it leaves nobody out; see --model.participation and --model.aggregation"
            )

    def begin(self, reference: Tensors) -> None:
        self._reference = reference
        self._changes: dict[str, list[Tensors]] = {}

    def add(self, tensors: Tensors, num_images: int) -> None:
        layers: dict[str, Tensors] = {}
        for key, tensor in tensors.items():
            layers.setdefault(part_of(key), {})[key] = difference_to(self._reference[key], tensor)
        for layer, change in layers.items():
            self._changes.setdefault(layer, []).append(change)

    def finish(self) -> Tensors:
        changes: Tensors = {}
        few = {layer: len(clients) for layer, clients in self._changes.items() if len(clients) < self.least()}
        self.refused = {layer: f"{self} needs {self.least()} clients, {given} gave it" for layer, given in few.items()}
        for layer, clients in self._changes.items():
            if layer not in self.refused:
                changes |= self.combine(clients)
        self._changes = {}
        return {
            key: (reference + changes[key]).to(reference.dtype) if key in changes else reference
            for key, reference in self._reference.items()
        }

    @abstractmethod
    def __str__(self) -> str:
        """The rule and its settings, for messages."""

    @abstractmethod
    def least(self) -> int:
        """Clients from which on the rule bounds what a liar can do."""

    @abstractmethod
    def combine(self, clients: list[Tensors]) -> Tensors:
        """The change of one layer.

        Args:
            clients: The change of each client that gave it, all with the same names and shapes; :meth:`least` or more.
        """
