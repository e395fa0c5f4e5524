"""FedDyn: the server keeps each client's gradient at its last local model."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from updates import settle, update_of

from fedssl.server.aggregation import FedDyn, WeightedMean
from fedssl.server.participation import Participation
from layerwise import LayerWise

W = "a/w"


def begun(clients: int = 4) -> FedDyn:
    rule = FedDyn(alpha=0.5)
    rule.begin(Participation([9] * clients), 3)
    return rule


def play(rule: FedDyn, now: float, **clients: float) -> float:
    """One round of clients that reach a weight; returns the global weight."""
    rule.begin_round({W: torch.tensor([now])})
    for name, reached in clients.items():
        rule.add(update_of({W: torch.tensor([reached])}, 7, client_id=int(name[1:])))
    return rule.finish()[W].item()


def corrections(rule: FedDyn) -> list[float]:
    return [rule.correction(client, {W: torch.zeros(1)})[W].item() for client in range(4)]


def test_two_rounds_by_hand() -> None:
    """Of four clients with an alpha of 1/2.

    Round 1 from 10: g_1 = -(8 - 10) / 2 = 1, g_3 = -(4 - 10) / 2 = 3, h = (1 + 3) / 4 = 1, x = 6 - 1 x 2.
    Round 2 from 4: g_0 = -(6 - 4) / 2 = -1, g_1 = 1 - (2 - 4) / 2 = 2, h = 1 + (-1 + 1) / 4, x = 4 - 1 x 2.
    """
    rule = begun()
    assert play(rule, 10.0, c1=8.0, c3=4.0) == 4
    assert corrections(rule) == [0, -1, 0, -3]
    assert play(rule, 4.0, c0=6.0, c1=2.0) == 2
    assert corrections(rule) == [1, -2, 0, -3]


def test_a_tensor_that_nobody_gave_stays() -> None:
    rule = begun()
    play(rule, 10.0, c1=8.0)
    assert play(rule, 6.0) == 6


def test_statistics_have_the_mean_and_no_gradient() -> None:
    rule, key = begun(), "a/norm.running_mean"
    rule.begin_round({key: torch.tensor([0.0])})
    for value in (1.0, 2.0):
        rule.add(update_of({key: torch.tensor([value])}))
    assert rule.finish()[key].item() == 1.5
    assert rule.state_dict() == {"common": {}, "own": {0: {}}}


def test_clients_with_different_data_find_the_common_optimum() -> None:
    assert settle(WeightedMean(), proximal=1.0) == pytest.approx(0.62, abs=0.02)
    assert settle(FedDyn(alpha=1.0), proximal=1.0) == pytest.approx(0.8, abs=1e-4)


def test_gradients_come_and_go_with_their_parts(make_world: Callable[..., Any]) -> None:
    rule = FedDyn(alpha=0.1)
    world = make_world(LayerWise(), rounds=3, aggregation=rule, proximal=0.1)
    parts: list[set[str]] = []
    for _ in range(3):
        world.run(1)
        parts.append({key.partition("/")[0] for key in rule.state_dict()["common"]})
        assert all(own.keys() == rule.state_dict()["common"].keys() for own in rule.state_dict()["own"].values())
    lasting = {"tail", "head.projector"}
    assert parts == [{"stem", "block.0"} | lasting, {"block.1"} | lasting, {"block.2"} | lasting]


@pytest.mark.parametrize("proximal", [0.0, 0.2])
def test_clients_with_another_proximal_term_are_refused(proximal: float, make_world: Callable[..., Any]) -> None:
    message = f"FedDyn needs clients with its own proximal term, they have {proximal}: set --model.proximal=0.1"
    with pytest.raises(ValueError, match=re.escape(message)):
        make_world(aggregation=FedDyn(alpha=0.1), proximal=proximal)


def test_alpha_must_be_usable() -> None:
    with pytest.raises(ValueError, match=re.escape("alpha must be from 1e-06 to 1e+06, got 0")):
        FedDyn(alpha=0)
