"""Durations that follow from a step's operations alone, so that every run makes the same plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from layerwise.memory.codec_speed import CodecSpeed, Speed
from layerwise.memory.graph import Op, StepTrace
from layerwise.memory.views import Ref, StateRef

CALL_SECONDS = 1e-5
FLOPS_A_SECOND = 8e10
BYTES_A_SECOND = 8e9
CODEC = CodecSpeed(pack=Speed(3e-4, 2e-9), restore=Speed(1e-4, 6e-10))


def with_nominal_times(trace: StepTrace) -> StepTrace:
    """The trace with durations of a nominal device in place of measured ones.

    An operation takes the time of its call, plus the longer one of computing (matrix products, convolutions and
    attention) and of moving its operands. The rates are about those of one core of a server; plans depend on their
    ratios only. Measured times give plans that are faster on one device, but others in every run.
    """
    return replace(trace, ops=tuple(replace(op, seconds=_seconds(trace, op)) for op in trace.ops), codec=CODEC)


def _seconds(trace: StepTrace, op: Op) -> float:
    read = [leaf.view for leaf in tree_leaves((op.args, op.kwargs)) if isinstance(leaf, Ref | StateRef)]
    made = [trace.values[value].view for _, value in op.outputs]
    moved = sum(_meta(view).numel() * view.dtype.itemsize for view in [*read, *made])
    return CALL_SECONDS + max(_flops(trace, op) / FLOPS_A_SECOND, moved / BYTES_A_SECOND)


def _flops(trace: StepTrace, op: Op) -> int:
    count = flop_registry.get(op.func.overloadpacket)
    if count is None or not op.outputs:
        return 0
    args, kwargs = tree_map_only((Ref, StateRef), lambda ref: _meta(ref.view), (op.args, op.kwargs))
    return count(*args, **kwargs, out_val=_meta(trace.values[op.outputs[0][1]].view))


def _meta(view: Any) -> Tensor:
    return torch.empty(view.shape, dtype=view.dtype, device="meta")
