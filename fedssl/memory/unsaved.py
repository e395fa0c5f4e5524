"""What a step needs besides the activations that autograd keeps, and that a memory plan can therefore not save."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from fedssl.planning.fake_step import FakeStep
from layerwise import LiveBytes


class UnsavedStep(FakeStep):
    """A local step on fake tensors that tells saved activations from everything else."""

    def peak(self, batch_size: int) -> int:
        """Most bytes alive at once that no plan can save: weights, gradients, optimizer state, copies, inputs.

        Outputs of running operations are among them, that is the forward pass as if nothing were saved, and the
        gradients that backward passes on. A step with a plan needs at most this and the plan's own peak; the two need
        not come at the same moment, so that it may need less.
        """
        with self._mode:
            if not self._optimizer.state:
                self._run(self._inputs(batch_size))
            state = [value for values in self._optimizer.state.values() for value in values.values()]
        resident = [*self._model, *self._copies, *(value for value in state if isinstance(value, Tensor))]
        with self._mode, _Unsaved(resident) as live:
            inputs = self._inputs(batch_size)
            with torch.no_grad():
                self._method.loss_of(inputs)
            with saved_tensors_hooks(live.leave_out, lambda tensor: tensor):
                self._run(inputs)
        return live.peak


class _Unsaved(LiveBytes):
    """Forgets every storage that autograd saves, from then on."""

    def __init__(self, resident: Iterable[Tensor]) -> None:
        super().__init__(resident)
        self._resident = set(self._sizes)

    def leave_out(self, tensor: Tensor) -> Tensor:
        """Hook for a tensor that autograd saves."""
        key = tensor.untyped_storage()._cdata
        if key in self._sizes and key not in self._resident:
            self.now -= self._sizes[key]
            self._sizes[key] = 0
        return tensor
