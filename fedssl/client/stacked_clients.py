"""Clients of equal shape trained together: their weights are stacked, and one operation serves all of them.

Where one small client does not fill a device, most of a step's time is spent on starting operations. A stack of clients
starts each of them once. Optimizers, momentum targets and corrections act by elements, so that they need not know of
the stack; only the losses are computed by ``torch.vmap``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import SGD, Adam, AdamW, Optimizer

from fedssl.client.step_costs import CostBook, StepKey
from fedssl.client.training_loop import LoopReport, NonFiniteLossError, scale_lr, shuffled_batches
from fedssl.data.datasets import SampleSet
from ssl_methods import Inputs, Method

BY_ELEMENTS = (SGD, Adam, AdamW)
"""Optimizers in whose step no element of a tensor depends on another, so that clients in one tensor stay apart."""

Generators = tuple[torch.Generator, torch.Generator]


class ClientStack(nn.Module):
    """Losses of several clients, each with tensors of its own.

    Args:
        method: Method as the first client begins its round; its prefix is the same for all clients.
    """

    def __init__(self, method: Method) -> None:
        super().__init__()
        terms = [module for term in method.loss_terms for module in vars(term).values()]
        own = [*(child for child in method.children() if child is not method.prefix), *terms]
        self.own = nn.ModuleList(module for module in own if isinstance(module, nn.Module))
        # In a tuple, or the prefix would become one of the modules.
        self._method = (method,)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the loss of one client."""
        return self._method[0].loss_of(inputs)

    def losses(self, inputs: Inputs) -> Tensor:
        """Return the losses (clients,) for inputs (clients, B, ...), inside of :meth:`of`."""
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        # ``vmap`` would run the CPU's own kernel of attention on one client after the other.
        plain = sdpa_kernel(SDPBackend.MATH) if inputs[0].device.type == "cpu" else nullcontext()
        with plain:
            losses: Tensor = torch.vmap(lambda own, views: functional_call(self, own, views))(tensors, inputs)
        return losses

    @contextmanager
    def of(self, clients: int) -> Iterator[None]:
        """Give every tensor a first dimension of as many clients, and put the single ones back at the end."""
        single = [(held, dict(held)) for each in self.modules() for held in (each._parameters, each._buffers)]
        stacks: dict[Tensor, Tensor] = {}
        try:
            for held, before in single:
                for name, tensor in before.items():
                    if tensor is not None:
                        # Once for each tensor: a weight that is shared stays so.
                        stacks[tensor] = held[name] = stacks[tensor] if tensor in stacks else _repeated(tensor, clients)
            yield
        finally:
            for held, before in single:
                held.update(before)


def _repeated(tensor: Tensor, clients: int) -> Tensor:
    stack = tensor.detach().expand(clients, *tensor.shape).clone()
    return nn.Parameter(stack, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else stack


def train_stack(
    stack: ClientStack,
    method: Method,
    clients: Sequence[SampleSet],
    epochs: int,
    batch_size: int,
    generators: Sequence[Generators],
    book: CostBook,
    key: StepKey,
    lr_factor: float = 1.0,
) -> list[LoopReport | NonFiniteLossError]:
    """Train a method on the samples of several clients, as ``train_epochs`` does on those of one.

    Args:
        stack: Of the method and as many clients.
        method: Trains its backbone and heads.
        clients: Samples of each client, equally many.
        epochs: Passes over them.
        batch_size: Samples a step and client.
        generators: Of each client: one shuffles the samples, the other augments them.
        book: Has the costs of all steps.
        key: Of the steps, but for the batch size.
        lr_factor: Factor of the optimizer's learning rate.
    """
    optimizer, times = method.configure_optimizers(), book.times
    scale_lr(optimizer, lr_factor)
    device = next(method.backbone.parameters()).device
    sums, costs = torch.zeros(2, len(clients), device=device), []
    broken: dict[int, NonFiniteLossError] = {}
    for _ in range(epochs):
        shuffled = zip(clients, generators, strict=True)
        epoch = [shuffled_batches(samples, batch_size, own[0], device) for samples, own in shuffled]
        for batches in zip(*epoch, strict=True):
            costs.append(book.costs[replace(key, batch_size=len(batches[0][0]))])
            with times("augmentation"):
                inputs = _inputs(method, batches, generators)
            with times("forward"):
                losses = stack.losses(inputs)
            with times("backward"):
                losses.sum().backward()
            with times("optimizer"):
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                method.after_step()
            found = losses.detach().float()
            sums += torch.stack([found, found.square()])
        for client, total in enumerate(sums[0].tolist()):
            if not math.isfinite(total):
                broken.setdefault(client, NonFiniteLossError(total, len(costs)))
    steps, macs = len(costs), sum(cost.macs for cost in costs)
    peak = max((cost.activation_bytes for cost in costs), default=0)
    means = (sums / steps).T.tolist() if steps else [(math.nan, math.nan)] * len(clients)
    reports = [LoopReport(loss, squared, steps, macs, peak) for loss, squared in means]
    return [broken.get(client, report) for client, report in enumerate(reports)]


def _inputs(method: Method, batches: Sequence[tuple[Tensor, Tensor]], generators: Sequence[Generators]) -> Inputs:
    """Return the inputs of all clients (clients, B, ...); each draws its views from its own generator."""
    made = []
    for batch, (_, augment) in zip(batches, generators, strict=True):
        method.generator = augment
        made.append(method.inputs(*batch))
    return tuple(map(torch.stack, zip(*made, strict=True)))


def check_stackable(method: Method, optimizer: Optimizer) -> None:
    """Refuse methods and optimizers that would mix clients, or whose random numbers would be others.

    Raises:
        ValueError: The method cannot be stacked; the message says why.
    """
    rates = [each.p for each in method.modules() if isinstance(each, _DropoutNd)]
    rates += [each.drop_prob or 0.0 for each in method.modules() if isinstance(each, DropPath)]
    reason = ""
    if type(optimizer) not in BY_ELEMENTS:
        names = ", ".join(kind.__name__ for kind in BY_ELEMENTS)
        reason = f"the optimizer {type(optimizer).__name__} may mix clients in a tensor: use {names}"
    elif method.state_parts() or method.client_state():
        reason = f"{type(method).__name__} has state beside its heads"
    elif any(rates):
        reason = "dropout layers would draw other numbers than they do for one client"
    if reason:
        raise ValueError(f"clients_at_once stacks the weights of clients: {reason}, or leave it at 1")
