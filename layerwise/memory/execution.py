"""Carries out a plan around a training step."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from layerwise.memory.graph import StepTrace
from layerwise.memory.holders import Compressed, Copied, Holder, Kept, Rebuilt
from layerwise.memory.ledger import Ledger
from layerwise.memory.operators import storage_key
from layerwise.memory.plan import MemoryPlan
from layerwise.memory.rebuilder import ModelState, Rebuilder
from layerwise.memory.recorder import state_names
from layerwise.memory.schedule import Schedule, schedule_of
from layerwise.memory.views import StateRef, View


class PlannedStep:
    """Context manager around forward and backward of each training step, which carries out a plan.

    Only ``torch.autograd.graph.saved_tensors_hooks`` are installed; other such hooks outside of it do not see the
    step's tensors. What is dropped is rebuilt by running the traced operations again, without a graph, without
    touching buffers, and as few of them as the kept and compressed values allow. Make it once and enter it at every
    step: an entered step costs a Python call for each saved tensor.

    Args:
        plan: The plan.
        trace: Of the same step.
        model: Holds the parameters and buffers under the names that they had in the trace.
        seed: Of stochastic rounding, whose random numbers go on from step to step.

    Attributes:
        peak_bytes: Bytes held at the worst moment of the step entered last, measured; see :class:`MemoryPlan` for
            what counts.

    Raises:
        ValueError: The plan belongs to another graph than the trace, here; the step that is run is another one
            than was traced, from within the step.
        RuntimeError: The step is differentiated twice, or a kept tensor is changed in place, from backward.
    """

    def __init__(self, plan: MemoryPlan, trace: StepTrace, model: nn.Module, seed: int = 0) -> None:
        self._trace = trace
        self._schedule = schedule_of(plan, trace)
        self._model = model
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}
        self._ledger = Ledger()
        self._hooks: saved_tensors_hooks | None = None

    @property
    def peak_bytes(self) -> int:
        """Measured peak of the step entered last."""
        return self._ledger.peak

    def __enter__(self) -> PlannedStep:
        self._ledger = Ledger()
        step = _Step(self._trace, self._schedule, self._model, self._ledger, self)
        self._hooks = saved_tensors_hooks(step.pack, step.unpack)
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._hooks is not None
        self._hooks.__exit__(kind, error, trace)
        self._hooks = None

    def generator(self, device: torch.device) -> torch.Generator:
        """The generator of stochastic rounding on a device."""
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]


@dataclass(frozen=True)
class _Saved:
    """What autograd gets in place of a tensor."""

    slot: int
    holder: Holder | None
    tensor: Tensor | None
    version: int


class _Step:
    """The hooks of one step."""

    def __init__(
        self, trace: StepTrace, schedule: Schedule, model: nn.Module, ledger: Ledger, planned: PlannedStep
    ) -> None:
        self._trace = trace
        self._names = state_names(model)
        self._holders = _make_holders(trace, schedule, ModelState(model), ledger, planned)
        self._last_slot = {value: slots[-1] for value, slots in trace.saved.items()}
        self._count = 0

    def pack(self, tensor: Tensor) -> _Saved:
        """Hook for a tensor that autograd saves."""
        number = self._count
        self._count += 1
        self._check(number, tensor)
        slot = self._trace.slots[number]
        if isinstance(slot, StateRef):
            return _Saved(number, None, tensor, tensor._version)
        holder = self._holders[slot.value]
        if number == self._last_slot[slot.value]:
            del self._holders[slot.value]
        holder.save(tensor)
        return _Saved(number, holder, tensor if isinstance(holder, Kept) else None, tensor._version)

    def unpack(self, saved: _Saved) -> Tensor:
        """Hook for a tensor that backward asks for."""
        if torch.is_grad_enabled():
            raise RuntimeError("a step with a memory plan cannot be differentiated twice (create_graph is refused)")
        if self._count != len(self._trace.slots):
            raise ValueError(_another(f"it saved {self._count} tensors, not {len(self._trace.slots)}"))
        if saved.tensor is None:
            assert isinstance(saved.holder, Copied)
            return self._trace.slots[saved.slot].view.on(saved.holder.use())
        if saved.tensor._version != saved.version:
            raise RuntimeError(
                f"saved tensor {saved.slot} of shape {tuple(saved.tensor.shape)} was changed in place after the "
                "forward pass, so its gradient would be wrong"
            )
        return saved.tensor

    def _check(self, number: int, tensor: Tensor) -> None:
        if number >= len(self._trace.slots):
            raise ValueError(_another(f"it saves more than {len(self._trace.slots)} tensors"))
        slot = self._trace.slots[number]
        planned = slot.name if isinstance(slot, StateRef) else None
        name, view = self._names.get(storage_key(tensor)), View.of(tensor)
        if (name, view) != (planned, slot.view):
            raise ValueError(_another(f"saved tensor {number} is {name or 'an activation'} as {view}, not {slot}"))


def _another(difference: str) -> str:
    return f"the step is another one than was traced, so its memory plan does not fit: {difference}"


def _make_holders(
    trace: StepTrace, schedule: Schedule, state: ModelState, ledger: Ledger, planned: PlannedStep
) -> dict[int, Holder]:
    holders: dict[int, Holder] = {}
    for value in trace.saved:
        action = schedule.actions.get(value)
        if action is None:
            holders[value] = Kept(ledger)
        elif action.bits:
            content, counts = trace.values[value], schedule.counts[value]
            holders[value] = Compressed(counts, ledger, content, action.bits, planned.generator)
    for recipe, rebuilds in schedule.recipes:
        leaves = {leaf: holders[leaf].storage for leaf in recipe.leaves}
        rebuilder = Rebuilder(trace, recipe, state, ledger, rebuilds, leaves)
        for value in recipe.targets:
            holders[value] = Rebuilt(schedule.counts[value], value, rebuilder)
    return holders
