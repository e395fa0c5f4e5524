"""The step that clients train with, put together in one place for training, costs and memory plans."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer

from fedssl.protocol.parts import PartitionedModel
from fedssl.utils.resources import Stopwatch
from layerwise import Stage
from ssl_methods import Inputs, Method, SSLMethod
from ssl_methods.alignment import Alignment, AlignmentState, ProximalTerm

Corrections = Sequence[tuple[nn.Parameter, Tensor]]


@dataclass(frozen=True)
class LocalStep:
    """Everything in a client's step beyond the method's own loss.

    Args:
        alignment: Representation alignment, if any.
        proximal: mu of the FedProx term; 0 switches it off.
        corrected: The server sends a correction of the gradients with every task.
        clip_norm: Largest global norm of the final gradient, see ``Method``; ``None``: no limit.
        keeps_received: The client holds the weights that it received, of which it sends the change.
    """

    alignment: Alignment | None = None
    proximal: float = 0.0
    corrected: bool = False
    clip_norm: float | None = None
    keeps_received: bool = False

    def attach(self, model: PartitionedModel, stage: Stage) -> Method:
        """Point the model's method and the alignment's copies at a stage, and return the method."""
        model.attach(stage)
        if self.alignment:
            self.alignment.begin_stage(_contrastive(model.method))
        return model.method

    def begin_client(self, method: Method, state: AlignmentState | None, corrections: Corrections = ()) -> list[Tensor]:
        """Give an attached method the losses of a client's round; its weights are those that the client received.

        Args:
            method: Loses the terms and corrections of the client before.
            state: Kept by :meth:`remember` after the client's last round; ``None`` if there was none.
            corrections: Parameters, each with the tensor that is added to its gradients.

        Returns:
            The tensors that the client holds for them.
        """
        method.loss_terms, method.corrections, method.clip_norm = [], list(corrections), self.clip_norm
        held = [correction for _, correction in corrections]
        if self.alignment:
            self.alignment.begin_client(_contrastive(method), state)
            method.loss_terms.append(self.alignment)
            held += self.alignment.copies()
        if self.proximal:
            term = ProximalTerm(method, self.proximal)
            method.loss_terms.append(term)
            held += term.received
        return held

    def remember(self, method: Method) -> AlignmentState | None:
        """Return what the client keeps of the trained method until its next round; ``None`` if nothing."""
        return self.alignment.remember(_contrastive(method)) if self.alignment else None


def take_step(
    method: Method,
    optimizer: Optimizer,
    inputs: Inputs,
    times: Stopwatch,
    planned: AbstractContextManager[object] = nullcontext(),  # noqa: B008 (has no state)
) -> Tensor:
    """Run forward, backward, optimizer and momentum targets, and return the loss.

    Args:
        method: Attached to a stage; its losses are those of the client.
        optimizer: Steps the method's trained parameters.
        inputs: Views, or stored outputs of the frozen prefix.
        times: Adds up the seconds of each phase.
        planned: Goes around forward and backward, to keep them within a memory budget.
    """
    with planned:
        with times("forward"):
            loss = method.loss_of(inputs)
        with times("backward"):
            loss.backward()
    with times("optimizer"):
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.after_step()
    return loss.detach()


def _contrastive(method: Method) -> SSLMethod:
    """Return the method as one that an alignment can take; others were refused with the settings."""
    assert isinstance(method, SSLMethod)
    return method
