"""Rules that hold when some clients lie."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from updates import update_of

from fedssl.protocol.messages import Failure
from fedssl.server.aggregation import Aggregation, CoordinateMedian, Krum, TrimmedMean
from fedssl.server.aggregation.robust import RobustAggregation, krum_scores, trimmed_mean
from fedssl.server.participation import Participation
from layerwise import LayerWise

ROBUST = {"median": CoordinateMedian, "trimmed mean": lambda: TrimmedMean(0.25), "Krum": lambda: Krum(1)}


def aggregate(rule: Aggregation, *clients: dict[str, list[float]]) -> dict[str, list[float]]:
    rule.begin_round({key: torch.full((2,), 10.0) for key in ("a/w", "b/w")})
    for number, client in enumerate(clients):
        rule.add(update_of({key: torch.tensor(values) for key, values in client.items()}, 1000**number))
    return {key: tensor.tolist() for key, tensor in rule.finish().items()}


def test_median_by_hand() -> None:
    odd = aggregate(CoordinateMedian(), {"a/w": [11, 30]}, {"a/w": [12, 20]}, {"a/w": [900, -900]})
    assert odd == {"a/w": [12, 20], "b/w": [10, 10]}
    even = aggregate(CoordinateMedian(), *({"a/w": [value, 0]} for value in (1, 2, 4, 9e9)))
    assert even["a/w"] == [3, 0]


def test_every_layer_has_its_own_clients() -> None:
    both = [{"a/w": [value, value], "b/w": [7 + value, 8]} for value in (1, 2, 9)]
    given = aggregate(CoordinateMedian(), *both, {"a/w": [3, 3]})
    assert given == {"a/w": [2.5, 2.5], "b/w": [9, 8]}


def test_trimmed_mean_by_hand() -> None:
    values = torch.tensor([[1.0, 0.0], [100.0, 6.0], [3.0, -100.0], [5.0, 3.0]])
    assert trimmed_mean(values, 1).tolist() == [4.0, 1.5]
    given = aggregate(TrimmedMean(0.25), *({"a/w": pair} for pair in values.tolist()))
    assert given["a/w"] == [4.0, 1.5]


def test_krum_by_hand() -> None:
    points = torch.tensor([[0.0], [1.0], [3.0], [2.0], [50.0]])
    assert krum_scores(points, 1).tolist() == [1 + 4, 1 + 1, 1 + 4, 1 + 1, 47**2 + 48**2]
    clients = [{"a/w": [value, 0.0]} for value in (0.0, 1.0, 3.0, 2.0, 50.0)]
    assert aggregate(Krum(1), *clients)["a/w"] == [1.0, 0.0]
    assert aggregate(Krum(1, keep=2), *clients)["a/w"] == [1.5, 0.0]


def test_settings_that_promise_nothing_are_refused() -> None:
    for trim in (0.0, 0.5):
        with pytest.raises(ValueError, match="trim must lie between 0 and"):
            TrimmedMean(trim)
    with pytest.raises(ValueError, match="byzantine and keep must be at least 1, got 0 and 1"):
        Krum(0)


@pytest.mark.parametrize(
    ("rule", "least"),
    [
        (CoordinateMedian(), 3),
        (TrimmedMean(), 5),
        (TrimmedMean(0.25), 4),
        (TrimmedMean(0.3), 4),
        (TrimmedMean(0.49), 3),
        (Krum(1), 5),
        (Krum(2, keep=4), 8),
    ],
)
def test_rules_refuse_rounds_in_which_they_leave_nobody_out(rule: RobustAggregation, least: int) -> None:
    rule.begin(Participation([9] * least), 3)
    with pytest.raises(ValueError, match=rf"participation {least - 1} clients a round: .* needs at least {least}"):
        rule.begin(Participation([9] * 20, least - 1), 3)
    honest = [{"a/w": [11.0, 11.0]}] * (least - 2)
    liar = {"a/w": [1e6, 1e6], "b/w": [1e6, 1e6]}
    assert aggregate(rule, *honest, liar) == {"a/w": [10, 10], "b/w": [10, 10]}
    assert set(rule.refused) == {"a", "b"}
    assert aggregate(rule, *honest, honest[0], liar)["a/w"][0] < 20
    assert set(rule.refused) == {"b"}


def test_a_round_of_too_few_is_an_empty_round(make_world: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    world = make_world(
        LayerWise(blocks_per_stage=3),
        3,
        sizes=(8,) * 5,
        aggregation=TrimmedMean(),
        server_optimizer=partial(torch.optim.SGD, lr=1.0, momentum=0.9),
    )
    world.round()
    before = world.weights()
    results = [_copy(world, client) for client in world.server.begin_round().participants]
    report = world.server.end_round([*results[:4], Failure(4, "gone")])
    assert all(torch.equal(before[key], tensor) for key, tensor in world.weights().items())
    assert len(report.trained) == 4
    assert "round 1: stem keeps its values: TrimmedMean with trim 0.2 needs 5 clients, 4 gave it" in caplog.text


@pytest.mark.parametrize("name", ROBUST)
def test_a_liar_moves_nothing(name: str, make_world: Callable[..., Any]) -> None:
    def distance(lie: bool, rule: Aggregation | None) -> float:
        world = make_world(LayerWise(blocks_per_stage=3), 1, sizes=(8,) * 5, aggregation=rule)
        before = world.weights()
        results = [_copy(world, client) for client in world.server.begin_round().participants]
        if lie:
            for tensors in results[4].parts.values():
                for tensor in tensors.values():
                    if tensor.is_floating_point():
                        tensor.add_(500.0)
        world.server.end_round(results)
        after = world.weights()
        return max((after[key] - before[key]).abs().max().item() for key in before)

    honest = distance(False, None)
    assert distance(True, ROBUST[name]()) < 3 * honest
    assert distance(True, None) > 50


def _copy(world: Any, client: int) -> Any:
    """A result that does not share memory with the resident model."""
    return copy.deepcopy(world.local(world.server.make_task(client), world.clients[client]))
