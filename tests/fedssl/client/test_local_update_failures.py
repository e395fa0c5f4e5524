"""Clients whose training fails, and the ones that train after them in the same model."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from fedssl.protocol.messages import Failure, Result, flatten
from layerwise import EndToEnd, LayerWise
from ssl_methods import StepOutput, TwoViews, Views
from ssl_methods.alignment import MoonAlignment

METHODS = ["SimCLR", "BYOL", "MoCoV3"]


def tensors_of(result: Result | Failure) -> dict[str, Tensor]:
    assert isinstance(result, Result), result
    return {key: tensor.clone() for key, tensor in flatten(result.parts).items()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [key for key in a if not torch.equal(a[key], b[key])]
    assert not different


@pytest.fixture
def fragile(methods: dict[str, Any]) -> Callable[[str], Any]:
    """Methods whose loss is NaN for white images."""

    def make(method: str) -> Any:
        base = methods[method]

        class Fragile(base.func):  # type: ignore[name-defined]
            def step(self, hidden: Views) -> StepOutput:
                output = super().step(hidden)
                factor = math.nan if hidden[0].amin() == 1.0 else 1.0
                return StepOutput(output.loss * factor, output.projections)

        return partial(Fragile, **base.keywords)

    return make


@pytest.mark.parametrize("method", METHODS)
def test_a_nan_loss_fails_and_the_next_client_is_unaffected(
    method: str, fragile: Callable[[str], Any], make_world: Callable[..., Any]
) -> None:
    settings: dict[str, Any] = {
        "method": fragile(method),
        "augment": TwoViews(),
        "alignment": MoonAlignment(),
        "proximal": 0.1,
        "rounds": 6,
    }
    world = make_world(EndToEnd(), **settings)
    tasks = world.tasks(1)
    expected = tensors_of(world.local(tasks[2], world.clients[2]))

    world = make_world(EndToEnd(), **settings)
    tasks = world.tasks(1)
    world.clients[1].images.fill_(255)
    failure = world.local(tasks[1], world.clients[1])
    assert isinstance(failure, Failure)
    assert failure.client_id == 1
    assert failure.reason.startswith("loss nan after")
    assert_equal(tensors_of(world.local(tasks[2], world.clients[2])), expected)


@pytest.mark.parametrize(
    ("method", "where"), [("SimCLR", "inputs"), ("SimCLR", "backward"), ("BYOL", "backward"), ("MoCoV3", "after_step")]
)
def test_an_exception_leaves_nothing_behind_for_the_next_client(
    method: str, where: str, make_world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients of an interrupted step would be added to the next client's."""
    settings: dict[str, Any] = {"method": method, "alignment": MoonAlignment(), "proximal": 0.1, "rounds": 6}
    world = make_world(LayerWise(), sizes=(4, 12, 8), **settings)
    expected = tensors_of(world.local(world.tasks(3)[2], world.clients[2]))

    world = make_world(LayerWise(), sizes=(4, 12, 8), **settings)
    tasks = world.tasks(3)
    with monkeypatch.context() as patch:
        target, name = (Tensor, "backward") if where == "backward" else (type(world.local.model.method), where)
        usual, calls = getattr(target, name), []

        def out_of_memory(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            result = usual(*args, **kwargs)
            if len(calls) == 2:
                raise RuntimeError("no memory left")
            return result

        patch.setattr(target, name, out_of_memory)
        with pytest.raises(RuntimeError, match="no memory left"):
            world.local(tasks[1], world.clients[1])
    assert_equal(tensors_of(world.local(tasks[2], world.clients[2])), expected)


def test_a_failed_client_keeps_its_memory(fragile: Callable[[str], Any], make_world: Callable[..., Any]) -> None:
    world = make_world(EndToEnd(), rounds=6, method=fragile("SimCLR"), augment=TwoViews(), alignment=MoonAlignment())
    tasks = world.tasks(1)
    before = copy.deepcopy(world.local.state_dict()["client_states"][1])
    white = copy.copy(world.clients[1])
    white.images = torch.full_like(white.images, 255)
    world.local(tasks[1], white)
    after = world.local.state_dict()["client_states"][1]
    assert before["layers"] == after["layers"]
    assert all(torch.equal(a, b) for a, b in zip(before["alignment"], after["alignment"], strict=True))
