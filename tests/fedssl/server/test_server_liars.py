"""What one client says can neither end a run nor outweigh the others."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from fedssl.protocol.messages import Result, Tensors
from fedssl.server.aggregation import WeightedMean
from fedssl.server.global_step import NonFiniteModelError
from fedssl.server.selection import FedHybridSelector, SmartFreezeSelector
from layerwise import EndToEnd


def honest(world: Any) -> list[Result]:
    return [copy.deepcopy(result) for result in world.results(world.server.begin_round())]


def shifted(result: Result, value: float) -> Result:
    for tensors in result.parts.values():
        for tensor in tensors.values():
            if tensor.is_floating_point():
                tensor.fill_(value)
    return result


@pytest.mark.parametrize("claim", [10**18, 2**63 - 1])
def test_claimed_images_weigh_no_more_than_the_divisions(claim: int, make_world: Callable[..., Any]) -> None:
    plain, lied_to = (make_world(EndToEnd()) for _ in range(2))
    plain.server.end_round(honest(plain))
    first, *others = honest(lied_to)
    report = lied_to.server.end_round([replace(first, num_images=claim), *others])
    assert report.trained == (0, 1, 2)
    assert all(torch.equal(a, b) for a, b in zip(plain.weights().values(), lied_to.weights().values(), strict=True))


@pytest.mark.parametrize("value", [3e38, -3e38, 1e30, 1e6])
def test_a_destructive_update_is_dropped_and_the_others_count(value: float, make_world: Callable[..., Any]) -> None:
    world = make_world(EndToEnd())
    first, *others = honest(world)
    report = world.server.end_round([shifted(first, value), *others])
    assert report.trained == (1, 2)
    assert "changed by" in report.failures[0].reason
    assert max(tensor.abs().max() for tensor in world.weights().values() if tensor.is_floating_point()) < 100
    assert world.round().trained == (0, 1, 2)


@pytest.mark.parametrize("selector", [SmartFreezeSelector, partial(FedHybridSelector, "1GiB")], ids=["a", "b"])
@pytest.mark.parametrize("squared_loss", [-5.0, 1e308])
def test_selectors_never_see_impossible_losses(
    selector: Callable[[], Any], squared_loss: float, make_world: Callable[..., Any]
) -> None:
    world = make_world(EndToEnd(), rounds=4, selector=selector(), cohort_size=2)
    first, *others = honest(world)
    world.server.end_round([replace(first, squared_loss=squared_loss), *others])
    world.run(3)


def test_a_model_that_a_round_broke_reaches_no_checkpoint(make_world: Callable[..., Any]) -> None:
    class Broken(WeightedMean):
        def finish(self) -> Tensors:
            return {key: tensor / 0 for key, tensor in super().finish().items()}

    world = make_world(EndToEnd(), aggregation=Broken())
    with pytest.raises(NonFiniteModelError, match=r"round 0: stem/.* is not finite after Broken, SGD and calibration"):
        world.round()


def test_only_parts_of_the_model_enter_the_state(make_world: Callable[..., Any]) -> None:
    world = make_world(EndToEnd())
    world.server.holdings.replace(0, {"stem": "0" * 32} | {f"part {number}": "1" for number in range(1000)})
    assert world.server.state_dict()["holdings"] == {0: {"stem": "0" * 32}}
