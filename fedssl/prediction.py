"""What one local step will cost, found by running it on tensors without data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.optim import Optimizer

from fedssl.alignment import Alignment, ProximalTerm
from fedssl.model import SplitModel
from layerwise import LiveBytes, Stage, StepMeter, tensor_bytes
from ssl_methods import SSLMethod, Views


@dataclass(frozen=True)
class StepPrediction:
    """Cost of a local step; sizes in bytes.

    The parts need not be alive at the same moment, so the peak may be less than their sum.

    Args:
        parameters: Weights and buffers of the present layers and heads.
        gradients: Of the trained parameters.
        optimizer_state: Of the client's optimizer.
        copies: Momentum target, alignment and proximal copies.
        activations: Kept by autograd for backward.
        peak: Most bytes of tensors alive at once.
        macs: Multiply-accumulates.
    """

    parameters: int
    gradients: int
    optimizer_state: int
    copies: int
    activations: int
    peak: int
    macs: int

    @property
    def transient(self) -> int:
        """What the peak holds beyond all of these, the two views among them."""
        known = self.parameters + self.gradients + self.optimizer_state + self.copies + self.activations
        return max(0, self.peak - known)

    def as_dict(self) -> dict[str, int]:
        """Plain numbers."""
        return asdict(self) | {"transient": self.transient}


class StepPredictor:
    """Predicts local steps of a model with a method, at any stage and batch size.

    The step that clients run is run on fake tensors: the same operators, shapes and lifetimes without memory or
    arithmetic. Hence multiply-accumulates and kept activations are those that a real step on this kind of device has.

    Args:
        model: Its method is attached to the stages asked for; its weights are not changed.
        alignment: Representation alignment, if any.
        proximal: mu of the FedProx term.
    """

    def __init__(self, model: SplitModel, alignment: Alignment | None, proximal: float) -> None:
        self._model = model
        self._alignment = alignment
        self._proximal = proximal
        self._run = cache(self.run)
        self._alike = len({repr(block) for block in model.encoder.blocks}) == 1

    def __call__(self, stage: Stage, batch_size: int) -> StepPrediction:
        """The cost of a step at a stage.

        Where all blocks are alike, as in a ViT, every cost grows by the same amount with each frozen and each trained
        block, so that a few shallow stages tell all others. Only the peak of a very small model may be off, by some
        percent, where it falls into another phase of the step with growing depth.
        """
        frozen, trained = len(stage.frozen), len(stage.trained)
        if not self._alike or frozen + trained <= 2:
            return self._run(stage, batch_size)
        least = 0 if stage.trains_stem else 1

        def shallow(frozen: int, trained: int) -> StepPrediction:
            present = tuple(range(frozen + trained))
            return self._run(Stage(0, present, present[frozen:], stage.trains_stem, 1), batch_size)

        base = shallow(least, 1)
        per_frozen = _difference(shallow(least + 1, 1), base) if frozen > least else {}
        per_trained = _difference(shallow(least, 2), base) if trained > 1 else {}
        return _extend(base, (per_frozen, frozen - least), (per_trained, trained - 1))

    def run(self, stage: Stage, batch_size: int) -> StepPrediction:
        """Runs the stage itself."""
        spec = self._model.encoder.spec
        self._model.attach(stage)
        if self._alignment:
            self._alignment.attach(self._model.method)
        mode = FakeTensorMode()
        method, alignment = self._fake(mode)
        shape = (batch_size, spec.in_channels, spec.image_size, spec.image_size)
        with mode:
            copies = _add_terms(method, alignment, self._proximal)
            return predict_step(method, (torch.empty(shape), torch.empty(shape)), copies)

    def _fake(self, mode: FakeTensorMode) -> tuple[SSLMethod, Alignment | None]:
        """Copies of method and alignment whose tensors have shapes but no data."""
        method = self._model.method
        generator, method.generator = method.generator, torch.default_generator
        memo = {id(torch.default_generator): torch.default_generator}
        try:
            with FakeCopyMode(mode):
                return copy.deepcopy((method, self._alignment), memo)
        finally:
            method.generator = generator


def _difference(larger: StepPrediction, smaller: StepPrediction) -> dict[str, int]:
    return {key: value - getattr(smaller, key) for key, value in asdict(larger).items()}


def _extend(base: StepPrediction, *growths: tuple[dict[str, int], int]) -> StepPrediction:
    """Adds each growth as often as it is counted."""
    costs = asdict(base)
    for growth, times in growths:
        costs = {key: value + times * growth.get(key, 0) for key, value in costs.items()}
    return StepPrediction(**costs)


def _add_terms(method: SSLMethod, alignment: Alignment | None, proximal: float) -> list[Tensor]:
    """Adds the further loss terms of a client that has a memory; returns the tensors they hold."""
    method.loss_terms = []
    copies: list[Tensor] = []
    if alignment:
        alignment.start(method, alignment.remember(method))
        method.loss_terms.append(alignment)
        copies += alignment.copies()
    if proximal:
        term = ProximalTerm(method, proximal)
        method.loss_terms.append(term)
        copies += term.received
    return copies


def predict_step(method: SSLMethod, views: Views, copies: list[Tensor]) -> StepPrediction:
    """Costs of a step on the tensors it is given, real or fake.

    Two steps are run: optimizer state exists from the first on, so the second has the peak of all later ones.

    Args:
        method: Attached to the stage.
        views: Both views (B, C, H, W).
        copies: Tensors of further loss terms.
    """
    optimizer = method.configure_optimizers()
    assert isinstance(optimizer, Optimizer)
    model = [*method.parameters(), *method.buffers()]
    own = [t for module in (method.prefix, method.backbone, *method.heads().values()) for t in _tensors(module)]
    live = LiveBytes([*model, *copies, *views])
    run = _step_of(method, optimizer, views)
    with live:
        run()
        with StepMeter([*model, *copies]) as meter:
            gradients = run()
    cost = meter.cost()
    parameters, state = tensor_bytes(own), tensor_bytes(_state(optimizer))
    twin = tensor_bytes(model) - parameters + tensor_bytes(copies)
    return StepPrediction(parameters, gradients, state, twin, cost.activation_bytes, live.peak, cost.macs)


def _step_of(method: SSLMethod, optimizer: Optimizer, views: Views) -> Callable[[], int]:
    def run() -> int:
        loss = method.loss_of(views)
        loss.backward()
        gradients = tensor_bytes(p.grad for p in method.trained() if p.grad is not None)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.after_step()
        return gradients

    return run


def _tensors(module: torch.nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _state(optimizer: Optimizer) -> list[Tensor]:
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
