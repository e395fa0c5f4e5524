"""Follows one step, operation by operation."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from layerwise.memory.graph import Op, StepTrace, Value
from layerwise.memory.operators import is_mask, is_random, storage_key, written
from layerwise.memory.views import Ref, StateRef, View


class Recorder(TorchDispatchMode):
    """Records the forward operations executed inside it, and the saved tensors of forward and backward.

    Storages are told apart by identity, and the content of a storage by the number of writes to it. Operations
    that only give another view of a storage are not recorded, because every tensor is noted as a view.

    Args:
        model: Its parameters and buffers are referred to by name.
        clock: Gives the time in seconds.
    """

    def __init__(self, model: nn.Module, clock: Callable[[], float]) -> None:
        super().__init__()
        self._names = state_names(model)
        self._clock = clock
        self._values: list[Value] = []
        self._ops: list[Op] = []
        self._slots: list[Ref | StateRef] = []
        self._unpacks: list[tuple[int, int]] = []
        self._calls: dict[str, tuple[int, int]] = {}
        self._current: dict[int, int] = {}
        self._writes: dict[str, int] = {}
        self._reads: list[dict[str, int]] = []
        self._node: int | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation and records it."""
        kwargs = kwargs or {}
        if self._node is not None:
            return self._run_backward(func, args, kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        noted_args, noted_kwargs = tree_map_only(Tensor, self._note, (args, kwargs))
        noted_args, noted_kwargs = tree_map_only(torch.Generator, lambda _: "generator", (noted_args, noted_kwargs))
        start = self._clock()
        out = func(*args, **kwargs)
        seconds = self._clock() - start
        self._record(func, noted_args, noted_kwargs, written(func, args, kwargs), tensors, out, seconds)
        return out

    def begin_backward(self) -> None:
        """From now on operations belong to backward."""
        self._node = 0

    def pack(self, tensor: Tensor) -> tuple[int, Tensor]:
        """Hook for a tensor that autograd saves."""
        self._slots.append(self._note(tensor))
        return len(self._slots) - 1, tensor

    def unpack(self, packed: tuple[int, Tensor]) -> Tensor:
        """Hook for a tensor that backward asks for."""
        self._unpacks.append((packed[0], self._node or 0))
        return packed[1]

    @contextmanager
    def calls_of(self, model: nn.Module) -> Iterator[None]:
        """Notes which operations belong to which call of which module."""
        counts: dict[str, int] = {}
        starts: list[int] = []

        def ended(name: str) -> None:
            number = counts[name] = counts.get(name, -1) + 1
            self._calls[f"{name or 'model'}#{number}"] = (starts.pop(), len(self._ops))

        with ExitStack() as stack:
            for name, module in model.named_modules():
                before = module.register_forward_pre_hook(lambda *_: starts.append(len(self._ops)))
                after = module.register_forward_hook(lambda *_, name=name: ended(name))
                stack.callback(before.remove)
                stack.callback(after.remove)
            yield

    def trace(self) -> StepTrace:
        """What was recorded."""
        ops = [
            replace(op, replayable=op.replayable and all(self._writes.get(n, 0) == count for n, count in reads.items()))
            for op, reads in zip(self._ops, self._reads, strict=True)
        ]
        return StepTrace(tuple(self._values), tuple(ops), tuple(self._slots), tuple(self._unpacks), dict(self._calls))

    def _run_backward(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Autograd asks for the tensors of a node before it computes, so computing separates the nodes."""
        known = {storage_key(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **kwargs)
        if any(isinstance(leaf, Tensor) and storage_key(leaf) not in known for leaf in tree_leaves(out)):
            assert self._node is not None
            self._node += 1
        return out

    def _knows(self, tensor: Tensor) -> bool:
        return storage_key(tensor) in self._names or storage_key(tensor) in self._current

    def _note(self, tensor: Tensor) -> Ref | StateRef:
        key, view = storage_key(tensor), View.of(tensor)
        if key in self._names:
            return StateRef(self._names[key], view)
        if key not in self._current:
            self._new_value(tensor, Value(tensor.untyped_storage().nbytes(), view, None))
        return Ref(self._current[key], view)

    def _new_value(self, tensor: Tensor, value: Value) -> int:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._current:
            weakref.finalize(storage, self._current.pop, key, None)
        self._values.append(value)
        self._current[key] = len(self._values) - 1
        return self._current[key]

    def _record(
        self, func: Any, args: Any, kwargs: Any, targets: list[Tensor], inputs: list[Tensor], out: Any, seconds: float
    ) -> None:
        refs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Ref | StateRef)]
        masks = [isinstance(ref, Ref) and self._values[ref.value].mask for ref in refs]
        number, mask = len(self._ops), is_mask(func, masks)
        overwritten = self._overwrite(targets, number, mask)
        outputs = self._fresh(out, number, mask)
        if not outputs and not overwritten and not targets:
            return
        states = {ref.name for ref in refs if isinstance(ref, StateRef)}
        updated = {self._names[storage_key(target)] for target in targets if storage_key(target) in self._names}
        for name in updated:
            self._writes[name] = self._writes.get(name, 0) + 1
        self._reads.append({name: self._writes.get(name, 0) for name in states - updated})
        plain = not any(tensor.is_conj() or tensor.is_neg() for tensor in inputs)
        read = tuple(dict.fromkeys(ref.value for ref in refs if isinstance(ref, Ref)))
        replayable = plain and not is_random(func, args, kwargs)
        self._ops.append(Op(func, args, kwargs, read, outputs, overwritten, replayable, seconds))

    def _overwrite(self, targets: list[Tensor], number: int, mask: bool) -> tuple[tuple[int, int], ...]:
        overwritten = []
        for target in targets:
            key = storage_key(target)
            if key not in self._names:
                old = self._current[key]
                new = self._new_value(target, replace(self._values[old], producer=number, mask=mask))
                overwritten.append((old, new))
        return tuple(overwritten)

    def _fresh(self, out: Any, number: int, mask: bool) -> tuple[tuple[int, int], ...]:
        fresh = []
        for position, leaf in enumerate(tree_leaves(out)):
            if isinstance(leaf, Tensor) and not self._knows(leaf):
                binary = mask or leaf.dtype == torch.bool
                value = Value(leaf.untyped_storage().nbytes(), View.of(leaf), number, position == 0, binary)
                fresh.append((position, self._new_value(leaf, value)))
        return tuple(fresh)


def state_names(model: nn.Module) -> dict[int, str]:
    """The name of each parameter and buffer by the identity of its storage."""
    named = [*model.named_buffers(), *model.named_parameters()]
    return {storage_key(tensor): name for name, tensor in reversed(named)}
