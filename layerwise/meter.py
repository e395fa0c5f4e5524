"""What one training step really costs: executed operations and activations kept for backward."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from layerwise.live_bytes import LiveBytes


@dataclass(frozen=True)
class StepCost:
    """Cost of one local training step.

    Args:
        macs: Multiply-accumulates of matrix products, convolutions and attention, forward and backward, all
            views and branches.
        activation_bytes: Most bytes of distinct storages that autograd kept for backward at once, the model's own
            state excluded.
    """

    macs: int
    activation_bytes: int


class StepMeter:
    """Context manager that counts the step executed inside it, without changing what it computes.

    Args:
        state: Parameters and buffers of the model, which do not count as activations.
    """

    def __init__(self, state: Iterable[Tensor]) -> None:
        self._state = {tensor.untyped_storage()._cdata for tensor in state}
        self._saved = LiveBytes(())
        self._flops: Any = FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)
        self._flops.mod_tracker = _NoModules()
        self._hooks = saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def __enter__(self) -> StepMeter:
        self._flops.__enter__()
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, trace)
        self._flops.__exit__(kind, error, trace)

    def cost(self) -> StepCost:
        """What was counted so far."""
        return StepCost(self._flops.get_total_flops() // 2, self._saved.peak)

    def _pack(self, tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in self._state:
            self._saved.follow(tensor)
        return tensor


class _NoModules(nullcontext[None]):
    """In place of the counter's record of modules, whose hooks keep gradients alive beyond their time."""

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
    """Whether an operator is among those whose multiply-accumulates count: matrix products, convolutions, attention."""
    return func.overloadpacket in flop_registry or func.overloadpacket in _CPU_ATTENTION
