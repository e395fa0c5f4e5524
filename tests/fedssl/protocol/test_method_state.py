"""A method's state beside its heads: declared, or refused."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from stateful_methods import Both, Queued, Renewed, SentQueue, Travelling, Undeclared
from torch import nn

from fedssl.protocol.parts import InitialState, PartitionedModel
from layerwise import LayerWise

HEADS = {"hidden_dim": 16, "output_dim": 8, "projector_layers": 2}


def model_of(method: Callable[..., Any], make_model: Callable[..., PartitionedModel]) -> PartitionedModel:
    return make_model(partial(method, **HEADS))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Undeclared, r"Undeclared\.centred\.center is in no part that travels and would leak from client to client"),
        (SentQueue, r"SentQueue\.queued\.memory_bank\.bank is in no part"),
        (Both, r"Both\.centred\.center both travels and is in client_state\(\)"),
    ],
)
def test_state_that_would_leak_is_refused(
    method: Any, message: str, make_model: Callable[..., PartitionedModel]
) -> None:
    with pytest.raises(ValueError, match=message):
        model_of(method, make_model)


def test_declared_state_travels_in_every_stage(make_model: Callable[..., PartitionedModel]) -> None:
    model = model_of(Travelling, make_model)
    for stage in LayerWise().stages(3, 3):
        assert model.trained_names(stage)[-2:] == ["head.projector", "state.centre"]
    assert list(model.read(["state.centre"])["state.centre"]) == ["center"]
    assert not model_of(Renewed, make_model).states


@pytest.mark.parametrize("method", [Renewed, Queued])
def test_client_state_goes_back_to_what_it_was(method: Any, make_model: Callable[..., PartitionedModel]) -> None:
    model = model_of(method, make_model)
    (module,) = model.method.client_state()
    before = {name: tensor.clone() for name, tensor in module.named_buffers()}
    model.attach(LayerWise().stages(3, 3)[0])
    model.method.training_step(torch.zeros(4, 1, 8, 8, dtype=torch.uint8))
    assert any(not torch.equal(tensor, before[name]) for name, tensor in module.named_buffers())
    model.client_state.reset()
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.named_buffers())


def test_tensors_that_change_their_shape_are_reset_too() -> None:
    """Some banks take the width of features from the first batch."""
    bank = nn.Module()
    bank.register_buffer("rows", torch.zeros(2, 0))
    bank.register_buffer("pointer", None)
    state = InitialState([bank])
    for _ in range(2):
        bank.rows, bank.pointer = torch.ones(2, 3), torch.ones(1)
        state.reset()
        assert bank.rows.shape == (2, 0)
        assert bank.pointer is None
    bank.rows = None
    state.reset()
    assert bank.rows.shape == (2, 0)
