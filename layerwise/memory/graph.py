"""What a traced training step consists of: operations, the values they make, and what autograd keeps of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from layerwise.memory.codec_speed import NO_TIME, CodecSpeed
from layerwise.memory.layout import Layout, layout_of
from layerwise.memory.views import Ref, StateRef, View


@dataclass(frozen=True)
class Value:
    """The content of a storage between two writes.

    Args:
        nbytes: Size of the storage.
        view: The tensor that first held it.
        producer: Number of the operation that made it; ``None`` for what came from outside the step.
        main: Whether it is an operation's first output; further outputs are statistics (a norm's inverse deviation,
            attention's log-sum-exp), small and sensitive.
        mask: Whether it takes two values only, as booleans and dropout masks do.
    """

    nbytes: int
    view: View
    producer: int | None
    main: bool = True
    mask: bool = False

    @property
    def numel(self) -> int:
        """Elements that the storage holds."""
        return self.nbytes // self.view.dtype.itemsize

    @property
    def flat(self) -> View:
        """The storage as one row."""
        return View(self.view.dtype, (self.numel,), (1,), 0)

    @cached_property
    def layout(self) -> Layout:
        """Where its channels lie."""
        return layout_of(self.view, self.nbytes)


@dataclass(frozen=True)
class Op:
    """One operation of the forward pass.

    Args:
        func: The operator.
        args: Its arguments, with :class:`Ref` and :class:`StateRef` in the place of tensors.
        kwargs: Its keyword arguments, likewise.
        inputs: Values it reads.
        outputs: (position among the flattened outputs, value) of every new storage.
        overwritten: (value before, value after) of every storage it writes to.
        replayable: Whether running it again gives the same result.
        seconds: Duration.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[tuple[int, int], ...]
    overwritten: tuple[tuple[int, int], ...]
    replayable: bool
    seconds: float


@dataclass(frozen=True)
class StepTrace:
    """One training step, as :func:`trace_step` saw it.

    Args:
        values: Everything the forward pass computed.
        ops: Its operations in order; those that only make views are left out.
        slots: The saved tensors in the order in which autograd saved them.
        unpacks: (slot, node) in the order in which backward asks for them; slots of one node are used together.
        calls: First and last operation (exclusive) of each module call, for example ``backbone.blocks.3#0``.
        codec: How long compression takes.
    """

    values: tuple[Value, ...]
    ops: tuple[Op, ...]
    slots: tuple[Ref | StateRef, ...]
    unpacks: tuple[tuple[int, int], ...]
    calls: dict[str, tuple[int, int]]
    codec: CodecSpeed = NO_TIME

    @cached_property
    def graph(self) -> str:
        """A hash of operators, arguments, shapes, data types and the order of backward; not of times."""
        digest = hashlib.sha256()
        for op in self.ops:
            digest.update(repr((str(op.func), op.args, op.kwargs, op.outputs, op.overwritten)).encode())
        digest.update(repr((self.slots, self.unpacks)).encode())
        return digest.hexdigest()[:16]

    @cached_property
    def saved(self) -> dict[int, list[int]]:
        """Values that autograd keeps, parameters and buffers excluded: value to its slots."""
        saved: dict[int, list[int]] = {}
        for number, slot in enumerate(self.slots):
            if isinstance(slot, Ref):
                saved.setdefault(slot.value, []).append(number)
        return saved

    @property
    def saved_bytes(self) -> int:
        """Peak of the saved activations when all are kept."""
        return sum(self.values[value].nbytes for value in self.saved)

    @property
    def forward_seconds(self) -> float:
        """Duration of the forward pass."""
        return sum(op.seconds for op in self.ops)
