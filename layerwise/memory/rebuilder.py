"""Runs recorded operations again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import UntypedStorage, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from layerwise.memory.graph import Op, StepTrace
from layerwise.memory.ledger import Ledger
from layerwise.memory.recipe import Recipe
from layerwise.memory.views import Ref, StateRef


class ModelState:
    """Parameters and buffers of a model by name.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = dict(model.named_parameters())
        self._buffers = dict(model.named_buffers())

    def storage(self, name: str) -> UntypedStorage:
        """A parameter's storage, or a copy of a buffer's: what runs again must not count twice in batch norm."""
        if name in self._parameters:
            return self._parameters[name].untyped_storage()
        return self._buffers[name].untyped_storage().clone()


class Rebuilder:
    """Rebuilds values from values that are at hand.

    Args:
        trace: The step.
        recipe: What to run.
        state: Parameters and buffers.
        ledger: Counts the bytes of what is made.
        rebuilds: How many times it will be asked to.
        leaves: Gives the values that the recipe reads; they stay alive until the last rebuild.
    """

    def __init__(
        self,
        trace: StepTrace,
        recipe: Recipe,
        state: ModelState,
        ledger: Ledger,
        rebuilds: int,
        leaves: Mapping[int, Callable[[], UntypedStorage]],
    ) -> None:
        self._trace = trace
        self._recipe = recipe
        self._state = state
        self._ledger = ledger
        self._rebuilds = rebuilds
        self._ready: dict[int, UntypedStorage] = {}
        self._leaves = dict(leaves)

    def take(self, value: int) -> UntypedStorage:
        """A value; others that were rebuilt with it wait until they are taken."""
        if value not in self._ready:
            self._ready |= self._run()
            self._rebuilds -= 1
            if not self._rebuilds:
                self._leaves = {}
        return self._ready.pop(value)

    def _run(self) -> dict[int, UntypedStorage]:
        made: dict[int, UntypedStorage] = {}
        for number, dropped in zip(self._recipe.ops, self._recipe.dropped, strict=True):
            op = self._trace.ops[number]
            for value in op.inputs:
                if value in self._leaves and value not in made:
                    made[value] = self._leaves[value]()
            self._run_op(op, made)
            for value in dropped:
                made.pop(value, None)
        return {value: made[value] for value in self._recipe.targets}

    def _run_op(self, op: Op, made: dict[int, UntypedStorage]) -> None:
        args, kwargs = self._arguments(op, made)
        out = tree_leaves(_quietly(op.func, args, kwargs))
        for position, value in op.outputs:
            made[value] = out[position].untyped_storage()
            self._ledger.hold_storage(made[value])
        for old, new in op.overwritten:
            made[new] = made.pop(old)

    def _arguments(self, op: Op, made: dict[int, UntypedStorage]) -> Any:
        filled = tree_map_only(Ref, lambda ref: ref.view.on(made[ref.value]), (op.args, op.kwargs))
        return tree_map_only(StateRef, lambda ref: ref.view.on(self._state.storage(ref.name)), filled)


def _quietly(func: Any, args: Any, kwargs: Any) -> Any:
    """Runs an operator as it was recorded: below autograd and with the data types it was given."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    device = tensors[0].device.type if tensors else "cpu"
    with torch.no_grad(), torch.autocast(device, enabled=False):
        return func(*args, **kwargs)
