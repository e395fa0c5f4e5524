"""What robust rules share: all clients' changes of a layer are seen together."""

from __future__ import annotations

from abc import abstractmethod

from fedssl.aggregation.rule import Aggregation, difference_to
from fedssl.aggregation.straggler_mean import layer_of
from fedssl.messages import Tensors


class RobustAggregation(Aggregation):
    """Combines, layer by layer, the changes of the clients that gave the layer.

    Clients weigh the same, because their numbers of images are their own claims. All changes are held until the end of
    the round, so memory grows with the cohort. A layer is a part that travels as a whole, such as a transformer block.
    """

    def begin(self, reference: Tensors) -> None:
        self._reference = reference
        self._changes: dict[str, list[Tensors]] = {}

    def add(self, tensors: Tensors, num_images: int) -> None:
        layers: dict[str, Tensors] = {}
        for key, tensor in tensors.items():
            layers.setdefault(layer_of(key), {})[key] = difference_to(self._reference[key], tensor)
        for layer, change in layers.items():
            self._changes.setdefault(layer, []).append(change)

    def finish(self) -> Tensors:
        changes: Tensors = {}
        for layer, clients in self._changes.items():
            changes |= self.combine(layer, clients)
        self._changes = {}
        return {
            key: (reference + changes[key]).to(reference.dtype) if key in changes else reference
            for key, reference in self._reference.items()
        }

    @abstractmethod
    def combine(self, layer: str, clients: list[Tensors]) -> Tensors:
        """The change of one layer.

        Args:
            layer: Its name.
            clients: The change of each client that gave it, all with the same names and shapes.
        """
