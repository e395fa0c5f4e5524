"""What one local step will cost, found by running it on tensors without data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

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
        transient: What the peak holds beyond all of these, the two views among them.
        peak: Most bytes of tensors alive at once.
        macs: Multiply-accumulates.
    """

    parameters: int
    gradients: int
    optimizer_state: int
    copies: int
    activations: int
    transient: int
    peak: int
    macs: int


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

    def __call__(self, stage: Stage, batch_size: int) -> StepPrediction:
        """The cost of a step at a stage."""
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
    known = parameters + gradients + state + twin + cost.activation_bytes
    transient = max(0, live.peak - known)
    return StepPrediction(parameters, gradients, state, twin, cost.activation_bytes, transient, live.peak, cost.macs)


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
