"""Measured cost of a training step: executed operations and activations kept for backward."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_backward_flop_count, sdpa_flop_count


@dataclass(frozen=True)
class StepCost:
    """Cost of one local training step.

    Args:
        macs: Multiply-accumulates of matrix products, convolutions and attention, forward and backward, all views and
            branches.
        activation_bytes: Peak bytes of distinct storages that autograd kept for backward, without the model's own
            state.
    """

    macs: int
    activation_bytes: int


class StepMeter:
    """Context manager that counts the operations and activations of a step, without changing its results.

    Args:
        state: Parameters and buffers of the model, which do not count as activations.
    """

    def __init__(self, state: Iterable[Tensor]) -> None:
        # Storages and not tensors: autograd also saves views of weights, such as their transposes.
        self._state = {tensor.untyped_storage()._cdata for tensor in state}
        self._saved = LiveBytes(())
        self._flops: Any = FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)
        self._flops.mod_tracker = _NoModules()
        self._hooks = saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def __enter__(self) -> StepMeter:
        self._flops.__enter__()
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._hooks.__exit__(*exception)
        self._flops.__exit__(*exception)

    def cost(self) -> StepCost:
        """Return the cost counted so far."""
        # torch counts a multiplication and an addition as two operations; costs here are multiply-accumulates.
        return StepCost(self._flops.get_total_flops() // 2, self._saved.peak)

    def _pack(self, tensor: Tensor) -> Tensor:
        # Autograd keeps weights for backward too, but those exist anyway.
        if tensor.untyped_storage()._cdata not in self._state:
            self._saved.follow(tensor)
        return tensor


class _NoModules(nullcontext[None]):
    """Replacement for the counter's module tracker, whose hooks keep gradients alive too long."""

    parents = ("Global",)


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward_flops(grad: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


# torch's counter knows the CUDA attention kernels but not the CPU one.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


def is_product(func: Any) -> bool:
    """Return True for operators whose multiply-accumulates count: matrix products, convolutions, attention."""
    return func.overloadpacket in flop_registry or func.overloadpacket in _CPU_ATTENTION


class LiveBytes(TorchDispatchMode):
    """Dispatch mode that follows every storage from its creation by an operation until it is freed.

    Real and fake tensors work alike, so that the same code measures and predicts a step. Memory that a kernel takes and
    gives back inside one operation is not seen; neither is the allocator's rounding.

    Args:
        resident: Tensors that exist beforehand.

    Attributes:
        now: Bytes alive.
        peak: The largest value of ``now``.
    """

    def __init__(self, resident: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}
        for tensor in resident:
            self.follow(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and follow its outputs."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.follow(leaf)
        return out

    def follow(self, tensor: Tensor) -> None:
        """Count the storage behind a tensor from now on, once."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        # The address may be given to another storage as soon as this one is gone.
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the distinct storages behind tensors."""
    storages: dict[int, torch.UntypedStorage] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
    return sum(storage.nbytes() for storage in storages.values())
