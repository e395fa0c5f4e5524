"""Local step on tensors without data, and its cost."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeCopyMode, FakeTensorMode
from torch.optim import Optimizer

from fedssl.client.local_step import LocalStep, take_step
from fedssl.utils.resources import Stopwatch
from layerwise import LiveBytes, StagedSpec, StepCost, StepMeter, tensor_bytes
from layerwise.memory import Actions, PlannedStep, PlanOutcome, segments
from ssl_methods import Inputs, Method


@dataclass(frozen=True)
class StepPrediction:
    """Cost of a local step; sizes in bytes.

    The parts need not be alive at the same moment, so the peak may be less than their sum.

    Args:
        parameters: Weights and buffers of the present layers and heads.
        gradients: Gradients of the trained parameters.
        optimizer_state: State of the client's optimizer.
        copies: Momentum target, alignment and proximal copies, corrections of the gradients, and the received weights
            if their change is compressed.
        activations: Activations that autograd keeps for backward.
        peak: Most bytes of tensors alive at once.
        macs: Multiply-accumulates.
        filling_macs: Multiply-accumulates of the frozen prefix on a batch of view pairs to store; 0 without a bank.
    """

    parameters: int
    gradients: int
    optimizer_state: int
    copies: int
    activations: int
    peak: int
    macs: int
    filling_macs: int

    @property
    def transient(self) -> int:
        """Bytes of the peak beyond all of these, the inputs among them."""
        known = self.parameters + self.gradients + self.optimizer_state + self.copies + self.activations
        return max(0, self.peak - known)

    def as_dict(self) -> dict[str, int]:
        """Return plain numbers, ``transient`` included."""
        return asdict(self) | {"transient": self.transient}


@dataclass(frozen=True)
class StepTrace:
    """Trace of a step that was run.

    Args:
        step: Cost of the step.
        levels: Bytes of tensors alive after each operation.
    """

    step: StepPrediction
    levels: tuple[int, ...]


class FakeStep:
    """Step that clients run, on tensors with shapes and lifetimes but without memory or arithmetic.

    Args:
        method: Method that is attached to a stage; it is copied.
        spec: Description of the encoder, which says how large inputs are.
        step: Terms that clients add to the method's loss, attached to it; it is copied.
        from_bank: True if the step gets stored outputs of the frozen prefix.
    """

    def __init__(self, method: Method, spec: StagedSpec, step: LocalStep, from_bank: bool = False) -> None:
        self._mode = FakeTensorMode()
        self._method, step = _fake(self._mode, method, step)
        self._shape = spec.input_shape
        with self._mode:
            corrections = [(p, torch.zeros_like(p)) for p in self._method.trained()] if step.corrected else []
            # As if the client had trained before: with a memory, MOON's step has more to compute and to hold.
            self._copies = step.begin_client(self._method, step.remember(self._method), corrections)
            if step.keeps_received:
                self._copies += [torch.empty_like(parameter) for parameter in self._method.trained()]
            optimizer = self._method.configure_optimizers()
        assert isinstance(optimizer, Optimizer)
        self._optimizer = optimizer
        self._model = [*self._method.parameters(), *self._method.buffers()]
        self._live = _Levels([*self._model, *self._copies])
        self._from_bank, self._prefix = from_bank, self._method.prefix

    def __call__(self, batch_size: int) -> StepTrace:
        """Run a step; the peak is at least that of filling a bank, if there is one."""
        filling = StepMeter([])
        with self._mode, self._live:
            self._warm_up(batch_size)
            with filling:
                inputs = self._inputs(batch_size)
            with StepMeter([*self._model, *self._copies]) as meter:
                gradients = self._run(inputs)
        return StepTrace(self._prediction(gradients, meter.cost(), filling.cost().macs), tuple(self._live.levels))

    def planned(self, batch_size: int, actions: Actions) -> PlanOutcome:
        """Run a step with actions for its segments.

        Raises:
            ChangedInPlaceError: An action keeps a result that the step changes in place.
        """
        method, planned = self._method, PlannedStep(self._method, actions)
        names = segments(method, [method.backbone, *method.heads().values()])
        with self._mode, self._live:
            self._warm_up(batch_size)
            # Operations are asked for without actions only, and counting them takes a fifth of the time.
            meter = StepMeter([])
            counting = nullcontext() if actions else meter
            with counting, _Observed(method, names, self._live, meter) as observed:
                try:
                    self._run(self._inputs(batch_size), planned)
                finally:
                    # A refused action stops half-way, and its gradients would count as alive in the next step.
                    self._optimizer.zero_grad(set_to_none=True)
        peak, macs = max(self._live.levels), meter.cost().macs
        return PlanOutcome(peak, planned.peak_bytes, macs, observed.held, observed.inputs, observed.macs)

    def hidden_shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes of an image's views as the active part gets them."""
        with self._mode:
            hidden = self._hidden(1)
        return [tuple(view.shape[1:]) for view in hidden if view.is_floating_point()]

    def _warm_up(self, batch_size: int) -> None:
        # Optimizer state exists from the first step on; only then have all further steps the same costs.
        if not self._optimizer.state:
            self._run(self._inputs(batch_size))
        self._live.levels = []

    def _inputs(self, batch_size: int) -> Inputs:
        """Make views; from a bank as the prefix gave them."""
        if not self._from_bank:
            return self._method.example_inputs((batch_size, *self._shape))
        hidden = self._hidden(batch_size)
        self._method.prefix = nn.Sequential()
        return hidden

    def _hidden(self, batch_size: int) -> Inputs:
        self._method.prefix = self._prefix
        return self._method.run_prefix(self._method.example_inputs((batch_size, *self._shape)))

    def _run(self, inputs: Inputs, planned: AbstractContextManager[object] = nullcontext()) -> int:  # noqa: B008
        """Take the clients' own step; return the bytes of gradients that the optimizer saw."""
        seen: list[int] = []

        def count(*_: Any) -> None:
            seen.append(tensor_bytes(p.grad for p in self._method.trained() if p.grad is not None))

        # Only there are all gradients present: ``take_step`` drops them after the update.
        hook = self._optimizer.register_step_pre_hook(count)
        try:
            take_step(self._method, self._optimizer, inputs, Stopwatch(), planned)
        except DataDependentOutputException as error:
            raise ValueError(
                f"{type(self._method).__name__} reads the value of a tensor in its step ({error}), and costs are "
                "predicted on tensors without values: decide by tensor operations such as torch.where instead"
            ) from error
        finally:
            hook.remove()
        return seen[0]

    def _prediction(self, gradients: int, cost: StepCost, filling_macs: int) -> StepPrediction:
        method, peak = self._method, max(self._live.levels)
        modules = (self._prefix, method.backbone, *method.heads().values(), *method.state_parts().values())
        parameters = tensor_bytes(t for m in modules for t in (*m.parameters(), *m.buffers()))
        values = [value for state in self._optimizer.state.values() for value in state.values()]
        state = tensor_bytes(value for value in values if isinstance(value, Tensor))
        # What a method holds beside the parts that travel: momentum target, and state of the client's own.
        copies = tensor_bytes(self._model) - parameters + tensor_bytes(self._copies)
        kept = cost.activation_bytes
        return StepPrediction(parameters, gradients, state, copies, kept, peak, cost.macs, filling_macs)


class _Observed(ExitStack):
    """Observer of the bytes that each segment's forward pass leaves behind, and of its operations."""

    def __init__(self, method: Method, names: list[str], live: LiveBytes, meter: StepMeter) -> None:
        super().__init__()
        self._live, self._meter, self._starts = live, meter, list[tuple[int, int]]()
        self.held, self.inputs, self.macs = (dict.fromkeys(names, 0) for _ in range(3))
        modules = dict(method.named_modules())
        for name in names:
            before = modules[name].register_forward_pre_hook(partial(self._before, name))
            after = modules[name].register_forward_hook(partial(self._after, name))
            self.callback(before.remove)
            self.callback(after.remove)

    def _before(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._starts.append((self._live.now, self._meter.cost().macs))
        if torch.is_grad_enabled():
            self.inputs[name] += tensor_bytes(each for each in inputs if each.requires_grad)

    def _after(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        now, macs = self._starts.pop()
        self.held[name] += self._live.now - now
        self.macs[name] += self._meter.cost().macs - macs


class _Levels(LiveBytes):
    """Live bytes that are noted after every operation."""

    def __init__(self, resident: Iterable[Tensor]) -> None:
        super().__init__(resident)
        self.levels: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        self.levels.append(self.now)
        return out


def _fake(mode: FakeTensorMode, method: Method, step: LocalStep) -> tuple[Method, LocalStep]:
    """Copy a method and the local step attached to it into tensors with shapes but without data."""
    # A generator cannot be copied among fake tensors: the global one stands in, which the memo hands through as it is.
    generator, method.generator = method.generator, torch.default_generator
    memo = {id(torch.default_generator): torch.default_generator}
    try:
        # Both in one copy: the step's terms stay attached to the method that they are copied with.
        with FakeCopyMode(mode):
            return copy.deepcopy((method, step), memo)
    finally:
        method.generator = generator
