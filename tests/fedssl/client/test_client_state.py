"""State of a method does not pass from client to client in the model that they share."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from stateful_methods import Queued, Renewed, Travelling

from fedssl.costs.prediction import StepPredictor
from fedssl.protocol.messages import Result, Tensors, flatten
from fedssl.server.calibration import Calibration
from layerwise import LayerWise

HEADS = {"hidden_dim": 16, "output_dim": 8, "projector_layers": 2}
METHODS = [partial(method, **HEADS) for method in (Travelling, Renewed, Queued)]
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.func.__name__)


def given(result: Any) -> Tensors:
    assert isinstance(result, Result)
    return {key: tensor.clone() for key, tensor in flatten(result.parts).items()}


@each_method
def test_a_client_gives_the_same_whoever_trained_before(method: Any, make_world: Callable[..., Any]) -> None:
    after_another, alone = (make_world(method=method) for _ in range(2))
    tasks = after_another.tasks()
    alone.tasks()
    after_another.local(tasks[0], after_another.clients[0])
    first = given(after_another.local(tasks[1], after_another.clients[1]))
    second = given(alone.local(tasks[1], alone.clients[1]))
    assert all(torch.equal(first[key], second[key]) for key in second)


@pytest.mark.parametrize("calibration", [None, pytest.param(Calibration(batch_size=4), marks=pytest.mark.slow)])
@each_method
def test_it_resumes_exactly(method: Any, calibration: Any, make_world: Callable[..., Any]) -> None:
    whole, resumed = (make_world(method=method, rounds=6, calibration=calibration) for _ in range(2))
    whole.run(3)
    resumed.restore(whole.checkpoint())
    assert repr(resumed.run(3)) == repr(whole.run(3))
    weights = resumed.weights()
    assert all(torch.equal(weights[key], tensor) for key, tensor in whole.weights().items())


def test_the_server_averages_what_travels(make_world: Callable[..., Any]) -> None:
    world = make_world(method=METHODS[0])
    results = list(map(given, world.results(world.server.begin_round())))
    # The results share memory with the resident model, so they are given once more, as copies.
    copies = make_world(method=METHODS[0])
    copies.round()
    sizes = [len(images) for images in world.clients]
    mean = sum(n * each["state.centre/center"] for n, each in zip(sizes, results, strict=True)) / sum(sizes)
    centre = copies.weights()["state.centre/center"]
    assert centre.abs().sum() > 0
    torch.testing.assert_close(centre, mean)


def test_predicting_a_step_moves_no_state(make_model: Callable[..., Any]) -> None:
    """A centre that travels counts with the weights, one that stays with the copies: eight float32 numbers."""
    stage, steps = LayerWise().stages(3, 3)[1], []
    for method in METHODS[:2]:
        model = make_model(method)
        steps.append(StepPredictor(model).run(stage, 4))
        assert not model.method.centred.center.any()
    assert (steps[0].parameters - steps[1].parameters, steps[1].copies - steps[0].copies) == (32, 32)
