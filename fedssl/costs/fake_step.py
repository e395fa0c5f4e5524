"""A local step on tensors without data, and what it costs."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
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
        gradients: Of the trained parameters.
        optimizer_state: Of the client's optimizer.
        copies: Momentum target, alignment and proximal copies, and corrections of the gradients.
        activations: Kept by autograd for backward.
        peak: Most bytes of tensors alive at once.
        macs: Multiply-accumulates.
        filling_macs: Of passing a batch of view pairs through the frozen prefix to store it; 0 without a bank.
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
        """What the peak holds beyond all of these, the inputs among them."""
        known = self.parameters + self.gradients + self.optimizer_state + self.copies + self.activations
        return max(0, self.peak - known)

    def as_dict(self) -> dict[str, int]:
        """Plain numbers."""
        return asdict(self) | {"transient": self.transient}


@dataclass(frozen=True)
class StepTrace:
    """A step that was run.

    Args:
        step: Its cost.
        levels: Bytes of tensors alive after each of its operations.
    """

    step: StepPrediction
    levels: tuple[int, ...]


class FakeStep:
    """The step that clients run, on tensors with shapes and lifetimes but without memory or arithmetic.

    Args:
        method: Attached to a stage; it is copied.
        spec: Of the encoder; says how large inputs are.
        step: What clients add to the method's loss, attached to it; it is copied.
        from_bank: Whether the step gets stored outputs of the frozen prefix.
    """

    def __init__(
        self,
        method: Method,
        spec: StagedSpec,
        step: LocalStep = LocalStep(),  # noqa: B008 (frozen)
        from_bank: bool = False,
    ) -> None:
        self._mode = FakeTensorMode()
        self._method, step = _fake(self._mode, method, step)
        self._shape = spec.input_shape
        with self._mode:
            corrections = [(p, torch.zeros_like(p)) for p in self._method.trained()] if step.corrected else []
            self._copies = step.begin_client(self._method, step.remember(self._method), corrections)
            optimizer = self._method.configure_optimizers()
        assert isinstance(optimizer, Optimizer)
        self._optimizer = optimizer
        self._model = [*self._method.parameters(), *self._method.buffers()]
        self._live = _Levels([*self._model, *self._copies])
        self._from_bank, self._prefix = from_bank, self._method.prefix

    def __call__(self, batch_size: int) -> StepTrace:
        """Runs a step.

        Before the first, another one is run: optimizer state exists from then on, so that every later step has the
        same costs. The peak is at least that of filling a bank, if there is one.
        """
        filling = StepMeter([])
        with self._mode, self._live:
            if not self._optimizer.state:
                self._run(self._inputs(batch_size))
            self._live.levels = []
            with filling:
                inputs = self._inputs(batch_size)
            with StepMeter([*self._model, *self._copies]) as meter:
                gradients = self._run(inputs)
        return StepTrace(self._prediction(gradients, meter.cost(), filling.cost().macs), tuple(self._live.levels))

    def planned(self, batch_size: int, actions: Actions) -> PlanOutcome:
        """Runs a step with actions for its segments.

        Raises:
            ChangedInPlaceError: An action keeps a result that the step changes in place.
        """
        method, planned = self._method, PlannedStep(self._method, actions)
        names = segments(method, [method.backbone, *method.heads().values()])
        with self._mode, self._live:
            if not self._optimizer.state:
                self._run(self._inputs(batch_size))
            self._live.levels = []
            # Operations are asked for without actions only, and counting them takes a fifth of the time.
            meter = StepMeter([])
            counting = nullcontext() if actions else meter
            with counting, _Observed(method, names, self._live, meter) as observed:
                try:
                    self._run(self._inputs(batch_size), planned)
                finally:
                    self._optimizer.zero_grad(set_to_none=True)
        peak, macs = max(self._live.levels), meter.cost().macs
        return PlanOutcome(peak, planned.peak_bytes, macs, observed.held, observed.inputs, observed.macs)

    def hidden_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of what the active part gets of an image, one for each view."""
        with self._mode:
            hidden = self._hidden(1)
        return [tuple(view.shape[1:]) for view in hidden if view.is_floating_point()]

    def _inputs(self, batch_size: int) -> Inputs:
        """Views; from a bank as the prefix gave them."""
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

        hook = self._optimizer.register_step_pre_hook(count)
        try:
            take_step(self._method, self._optimizer, inputs, Stopwatch(), planned)
        finally:
            hook.remove()
        return seen[0]

    def _prediction(self, gradients: int, cost: StepCost, filling_macs: int) -> StepPrediction:
        method, peak = self._method, max(self._live.levels)
        modules = (self._prefix, method.backbone, *method.heads().values(), *method.state_parts().values())
        parameters = tensor_bytes(t for m in modules for t in (*m.parameters(), *m.buffers()))
        values = [value for state in self._optimizer.state.values() for value in state.values()]
        state = tensor_bytes(value for value in values if isinstance(value, Tensor))
        copies = tensor_bytes(self._model) - parameters + tensor_bytes(self._copies)
        kept = cost.activation_bytes
        return StepPrediction(parameters, gradients, state, copies, kept, peak, cost.macs, filling_macs)


class _Observed(ExitStack):
    """Notes what the forward pass of each segment leaves behind and computes."""

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
    """Also notes the bytes alive after every operation."""

    def __init__(self, resident: Iterable[Tensor]) -> None:
        super().__init__(resident)
        self.levels: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        self.levels.append(self.now)
        return out


def _fake(mode: FakeTensorMode, method: Method, step: LocalStep) -> tuple[Method, LocalStep]:
    """Copies of a method and what is attached to it, whose tensors have shapes but no data."""
    generator, method.generator = method.generator, torch.default_generator
    memo = {id(torch.default_generator): torch.default_generator}
    try:
        with FakeCopyMode(mode):
            return copy.deepcopy((method, step), memo)
    finally:
        method.generator = generator
