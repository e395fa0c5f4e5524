"""Alignment losses against hand-computed numbers, and on a split encoder."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from layerwise import LayerWise
from ssl_methods import Foundation, SSLMethod, StepOutput, TwoViews, Views, info_nce
from ssl_methods.alignment import Alignment, GlobalAlignment, MoonAlignment, ProximalTerm

HIDDEN = torch.eye(2)
PROJECTIONS = torch.tensor([[1.0, 0.0], [1.0, 1.0]])


class Linear(SSLMethod):
    """The projection of x is W x; nothing else."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(Foundation(nn.Linear(2, 2, bias=False), 2, TwoViews(), partial(SGD, lr=0.1)))
        self.projector = nn.Linear(2, 2, bias=False)
        self.set(weight)

    def set(self, weight: Tensor) -> None:
        with torch.no_grad():
            self.backbone.weight.copy_(torch.eye(2))
            self.projector.weight.copy_(weight)

    def heads(self) -> dict[str, nn.Module]:
        return {"projector": self.projector}

    def step(self, hidden: Views) -> StepOutput:
        first, second = (self.projector(self.backbone(view)) for view in hidden)
        return StepOutput(torch.zeros(()), (first, second))


def started(alignment: Alignment, received: Tensor, previous: Tensor | None = None) -> Linear:
    """A method that received weights, after its client remembered others."""
    method = Linear(torch.zeros(2, 2) if previous is None else previous)
    alignment.begin_stage(method)
    memory = None if previous is None else alignment.remember(method)
    method.set(received)
    alignment.begin_client(method, memory)
    return method


def value(alignment: Alignment, first: Tensor, second: Tensor | None = None) -> float:
    output = StepOutput(torch.zeros(()), (first, first if second is None else second))
    return alignment((HIDDEN, HIDDEN), output).item()


# --- global


def test_global_alignment_by_hand() -> None:
    alignment = GlobalAlignment(weight=1.0, temperature=0.5)
    started(alignment, torch.eye(2))
    # row 0 has cosines (1, 0) with the global projections, row 1 has (1, 1) / sqrt 2
    by_hand = (math.log(1 + math.exp(-2.0)) + math.log(2.0)) / 2
    assert value(alignment, PROJECTIONS) == pytest.approx(by_hand, abs=1e-6)


def test_loss_is_the_weighted_mean_over_views() -> None:
    alignment = GlobalAlignment(weight=3.0, temperature=0.5)
    started(alignment, torch.eye(2))
    perfect, even = math.log(1 + math.exp(-2.0)), math.log(2.0)
    expected = 3.0 * (perfect + (perfect + even) / 2) / 2
    assert value(alignment, torch.eye(2), PROJECTIONS) == pytest.approx(expected, abs=1e-6)


def test_weight_zero_switches_off() -> None:
    alignment = GlobalAlignment(weight=0.0)
    method = started(alignment, torch.eye(2))
    method.set(torch.tensor([[0.0, 1.0], [1.0, 0.3]]))
    loss = alignment((HIDDEN, HIDDEN), method.step((HIDDEN, HIDDEN)))
    loss.backward()
    assert loss.item() == 0.0
    assert not method.projector.weight.grad.any()


def test_gradient_pulls_towards_the_received_model() -> None:
    alignment = GlobalAlignment(temperature=0.5)
    received = torch.tensor([[1.0, 0.2], [-0.3, 1.0]])
    method = started(alignment, received)
    method.set(torch.tensor([[0.1, 1.0], [1.0, 0.4]]))
    optimizer = SGD(method.parameters(), lr=0.5)

    def similarity() -> float:
        return F.cosine_similarity(HIDDEN @ method.projector.weight.T, HIDDEN @ received.T).mean().item()

    before, losses = similarity(), []
    for _ in range(30):
        loss = alignment((HIDDEN, HIDDEN), method.step((HIDDEN, HIDDEN)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert before < 0.3 < 0.9 < similarity()


def test_received_model_stays_while_the_local_one_trains() -> None:
    alignment = GlobalAlignment(temperature=0.5)
    method = started(alignment, torch.eye(2))
    before = value(alignment, PROJECTIONS)
    method.set(torch.tensor([[0.0, 5.0], [1.0, 0.0]]))
    assert value(alignment, PROJECTIONS) == before
    alignment.begin_client(method, None)
    assert value(alignment, PROJECTIONS) != before


# --- MOON


def test_moon_by_hand() -> None:
    alignment = MoonAlignment(weight=2.0, temperature=0.5)
    started(alignment, torch.eye(2), previous=torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    # row 0: cosine 1 with the global and 0 with the previous projection; row 1 is as near to either
    by_hand = (math.log(1 + math.exp(-2.0)) + math.log(2.0)) / 2
    assert value(alignment, PROJECTIONS) == pytest.approx(2.0 * by_hand, abs=1e-6)


def test_moon_is_zero_without_a_memory() -> None:
    alignment = MoonAlignment()
    method = started(alignment, torch.eye(2), previous=torch.ones(2, 2))
    assert value(alignment, PROJECTIONS) > 0
    alignment.begin_client(method, None)
    loss = alignment((HIDDEN, HIDDEN), method.step((HIDDEN, HIDDEN)))
    assert loss.item() == 0.0


def test_moon_memory_is_a_copy_of_the_online_branch() -> None:
    method = Linear(torch.eye(2))
    memory = MoonAlignment().remember(method)
    assert [tensor.tolist() for tensor in memory] == [torch.eye(2).tolist()] * 2
    method.set(torch.ones(2, 2))
    assert memory[1].tolist() == torch.eye(2).tolist()
    assert GlobalAlignment().remember(method) is None


# --- on an encoder with a frozen prefix


@pytest.mark.parametrize("kind", [GlobalAlignment, MoonAlignment])
def test_alignment_of_the_active_part_is_that_of_the_whole_model(
    kind: type[Alignment], make_model: Callable[..., Any], noise: Callable[..., Any]
) -> None:
    model = make_model("MoCoV3")
    stage = LayerWise().stages(3, 3)[1]
    model.attach(stage)
    model.encoder.depth = stage.depth
    alignment = kind(temperature=0.3)
    alignment.begin_stage(model.method)
    previous = copy.deepcopy((model.encoder, model.method.projector))
    memory = alignment.remember(model.method)
    with torch.no_grad():
        for parameter in model.method.trained():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    received = copy.deepcopy((model.encoder, model.method.projector))
    alignment.begin_client(model.method, memory)
    with torch.no_grad():
        model.method.backbone[0].mlp.fc1.weight.mul_(1.5)

    views = (images / 255 for images in (noise(6, 1).images, noise(6, 2).images))
    first, second = views
    hidden = (model.method.prefix(first), model.method.prefix(second))
    output = model.method.step(hidden)
    expected = []
    for view, local in zip((first, second), output.projections, strict=True):
        towards, away = (projector(encoder(view)) for encoder, projector in (received, previous))
        if kind is GlobalAlignment:
            expected.append(info_nce(local, towards, 0.3))
        else:
            logits = torch.stack([F.cosine_similarity(local, other) for other in (towards, away)], 1) / 0.3
            expected.append(F.cross_entropy(logits, torch.zeros(6, dtype=torch.long)))
    assert alignment(hidden, output).item() == pytest.approx(torch.stack(expected).mean().item(), abs=1e-5)


# --- proximal term and settings


def test_proximal_term_value_and_gradient() -> None:
    start = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    method = Linear(start)
    term = ProximalTerm(method, mu=0.5)
    output = method.step((HIDDEN, HIDDEN))
    assert term((HIDDEN, HIDDEN), output).item() == 0.0
    moved = torch.tensor([[1.0, 0.0], [6.0, 4.0]])
    method.set(moved)
    loss = term((HIDDEN, HIDDEN), output)
    loss.backward()
    assert loss.item() == pytest.approx(0.5 / 2 * (4 + 9))
    assert torch.allclose(method.projector.weight.grad, 0.5 * (moved - start))
    assert not method.backbone.weight.grad.any()


@pytest.mark.parametrize("kind", [GlobalAlignment, MoonAlignment])
def test_settings_are_checked(kind: type[Any]) -> None:
    with pytest.raises(ValueError, match=r"alignment\.weight must be from 0 to 1e\+06, got -0\.1"):
        kind(weight=-0.1)
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"alignment.temperature must be from 0.001 to 1000, got {temperature}"):
            kind(temperature=temperature)
