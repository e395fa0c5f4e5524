"""FedNova: changes are averaged by step."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD
from updates import update_of

from fedssl.protocol.messages import Result, flatten
from fedssl.server.aggregation import FedNova, WeightedMean
from fedssl.server.aggregation.fednova import path_length
from layerwise import LayerWise


def aggregate(rule: Any, reference: dict[str, Tensor], *updates: tuple[dict[str, Tensor], int, int]) -> dict[str, Any]:
    rule.begin_round(reference)
    for tensors, images, steps in updates:
        rule.add(update_of(tensors, images, steps))
    return {key: tensor.tolist() for key, tensor in rule.finish().items()}


def test_by_hand() -> None:
    """Shares 3/4 and 1/4, 2 and 6 steps: tau_eff = 3; changes of 2 and 1 a step give 3 (1.5 + 0.25) = 5.25."""
    reference = {"a/w": torch.tensor([10.0])}
    updates = [({"a/w": torch.tensor([14.0])}, 3, 2), ({"a/w": torch.tensor([16.0])}, 1, 6)]
    assert aggregate(FedNova(), reference, *updates) == {"a/w": [15.25]}
    assert aggregate(WeightedMean(), reference, *updates) == {"a/w": [14.5]}


def test_momentum_by_hand() -> None:
    """With rho = 1/2 the weights of three steps are 1 3/4, 1 1/2 and 1; |a| is 1 and 4.25, tau_eff 2.625."""
    updates = [({"a/w": torch.tensor([1.0])}, 5, 1), ({"a/w": torch.tensor([8.5])}, 5, 3)]
    (given,) = aggregate(FedNova(momentum=0.5), {"a/w": torch.zeros(1)}, *updates)["a/w"]
    assert given == pytest.approx(2.625 * (0.5 * 1 + 0.5 * 2))


def test_the_proximal_term_by_hand() -> None:
    """With alpha = 1/2 the weights of two steps are 1/2 and 1; |a| is 1 and 1.5, tau_eff still 1.5 steps."""
    updates = [({"a/w": torch.tensor([1.0])}, 5, 1), ({"a/w": torch.tensor([3.0])}, 5, 2)]
    (given,) = aggregate(FedNova(proximal=0.5), {"a/w": torch.zeros(1)}, *updates)["a/w"]
    assert given == pytest.approx(1.5 * (0.5 * 1 + 0.5 * 2))


def test_layers_have_their_own_givers() -> None:
    reference = {key: torch.zeros(1) for key in ("a/w", "b/w", "c/w")}
    updates = [({"a/w": torch.ones(1), "b/w": torch.ones(1)}, 1, 1), ({"b/w": torch.full((1,), 4.0)}, 1, 4)]
    assert aggregate(FedNova(), reference, *updates) == {"a/w": [1.0], "b/w": [2.5], "c/w": [0.0]}


@pytest.mark.parametrize("key", ["a/norm.running_mean", "a/norm.running_var", "state.centre/center"])
def test_what_no_gradient_moves_has_the_weighted_mean(key: str) -> None:
    """Their step by step average would be 1 + 3 (0.75 (-0.5) + 0) < 0."""
    updates = [({key: torch.zeros(1)}, 3, 2), ({key: torch.ones(1)}, 1, 6)]
    assert aggregate(FedNova(), {key: torch.ones(1)}, *updates) == {key: [0.25]}


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9}, {"proximal": 0.02}])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_length_of_a_path_is_that_of_torchs_optimizer(settings: dict[str, float], steps: int) -> None:
    """Under a constant gradient of 1, with a learning rate of 0.1 and hence mu = alpha / 0.1."""
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = SGD([weight], lr=0.1, momentum=settings.get("momentum", 0.0))
    for _ in range(steps):
        weight.grad = 1 + settings.get("proximal", 0.0) / 0.1 * weight.detach()
        optimizer.step()
    assert path_length(steps, **settings) == pytest.approx(-weight.item() / 0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 1.0}, "must be at least 0 and below 1, got 1.0 and 0.0"),
        ({"proximal": -0.1}, "must be at least 0 and below 1, got 0.0 and -0.1"),
        ({"momentum": 0.9, "proximal": 0.1}, "exclude each other"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FedNova(**settings)


def test_a_layer_wise_round_by_its_definition(make_world: Callable[..., Any]) -> None:
    """Clients of 4, 9 and 8 images take 2, 4 and 4 steps of at most 4 images in two epochs."""
    world, twin = (make_world(LayerWise(), aggregation=FedNova(), epochs=2) for _ in range(2))
    for each in (world, twin):
        each.run(1)
    before, results = world.weights(), list[tuple[int, int, dict[str, Tensor]]]()
    for result in world.results(world.server.begin_round()):
        assert isinstance(result, Result)
        tensors = {key: tensor.clone() for key, tensor in flatten(result.parts).items()}
        results.append((result.num_images, result.steps, tensors))
    assert [(images, steps) for images, steps, _ in results] == [(4, 2), (9, 4), (8, 4)]
    twin.round()
    after, effective = twin.weights(), sum(images * steps for images, steps, _ in results) / 21
    trained = [key for key in results[0][2] if before[key].is_floating_point() and "running" not in key]
    for key in trained:
        by_step = sum(images / 21 * (tensors[key] - before[key]) / steps for images, steps, tensors in results)
        torch.testing.assert_close(after[key], before[key] + effective * by_step, rtol=1e-5, atol=1e-7)
