"""What stands for an activation between forward and backward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, UntypedStorage

from layerwise.memory.codec import Packed, PackedMask, compress, compress_mask
from layerwise.memory.graph import Value
from layerwise.memory.ledger import Ledger
from layerwise.memory.plan import LOSSLESS
from layerwise.memory.rebuilder import Rebuilder


class Holder(ABC):
    """Holds a value, in whatever form, from when autograd saves it until nothing needs it any more."""

    @abstractmethod
    def save(self, tensor: Tensor) -> None:
        """Called with every tensor that autograd saves of the value."""

    @abstractmethod
    def storage(self) -> UntypedStorage:
        """The value's content. A copy counts in the ledger for as long as it lives."""


class Kept(Holder):
    """The value itself.

    Args:
        ledger: Counts the bytes held.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._storage: UntypedStorage | None = None

    def save(self, tensor: Tensor) -> None:
        """Counts the storage once, however many tensors look at it."""
        if self._storage is None:
            self._storage = tensor.untyped_storage()
            self._ledger.hold(self, self._storage.nbytes())

    def storage(self) -> UntypedStorage:
        """The storage itself."""
        assert self._storage is not None
        return self._storage


class Copied(Holder):
    """Something of which backward gets copies; one copy serves unpackings that are near to each other.

    Args:
        counts: How many unpackings each copy serves, in order.
    """

    def __init__(self, counts: list[int]) -> None:
        self._counts = counts[::-1]
        self._copy: UntypedStorage | None = None

    def use(self) -> UntypedStorage:
        """The content for one unpacking of backward.

        Raises:
            RuntimeError: Backward asks more often than in the traced step.
        """
        if not self._counts:
            raise RuntimeError("a step with a memory plan can be differentiated only once (retain_graph is refused)")
        copy = self._copy if self._copy is not None else self.storage()
        self._counts[-1] -= 1
        self._copy = copy if self._counts[-1] else None
        if not self._counts[-1]:
            self._counts.pop()
        return copy


class Compressed(Copied):
    """A compressed copy.

    Args:
        counts: How many unpackings each restored copy serves, in order.
        ledger: Counts the bytes held.
        value: What is compressed.
        bits: Mean width of a code.
        generator: Gives the generator of stochastic rounding on a device.
    """

    def __init__(
        self,
        counts: list[int],
        ledger: Ledger,
        value: Value,
        bits: int,
        generator: Callable[[torch.device], torch.Generator],
    ) -> None:
        super().__init__(counts)
        self._ledger = ledger
        self._value = value
        self._bits = bits
        self._generator = generator
        self._packed: Packed | PackedMask | None = None

    def save(self, tensor: Tensor) -> None:
        """Packs the whole storage once, however many tensors look at it."""
        if self._packed is not None:
            return
        block = self._value.flat.on(tensor.untyped_storage())
        if self._bits == LOSSLESS:
            self._packed = compress_mask(block)
        else:
            self._packed = compress(block, self._value.layout, self._bits, self._generator(block.device))
        self._ledger.hold(self, self._packed.nbytes)

    def storage(self) -> UntypedStorage:
        """A restored copy."""
        assert self._packed is not None
        storage = self._packed.restore().untyped_storage()
        self._ledger.hold_storage(storage)
        return storage


class Rebuilt(Copied):
    """Nothing but the way to make the value again.

    Args:
        counts: How many unpackings each rebuilt copy serves, in order.
        value: Number of the value.
        rebuilder: Rebuilds it, perhaps with others.
    """

    def __init__(self, counts: list[int], value: int, rebuilder: Rebuilder) -> None:
        super().__init__(counts)
        self._value = value
        self._rebuilder = rebuilder

    def save(self, tensor: Tensor) -> None:
        """Keeps nothing."""

    def storage(self) -> UntypedStorage:
        """A rebuilt copy."""
        return self._rebuilder.take(self._value)
