"""What has arrived of a client's work at the deadline."""

import math
from typing import Any

import pytest
import torch

from fedssl.devices import Deadline
from fedssl.protocol.messages import Failure, Parts, Result

NAMES = ("stem", "block.0", "block.1", "tail", "head.projector")


def result(names: tuple[str, ...] = NAMES, macs: int = 1000) -> Result:
    parts: Parts = {name: {"w": torch.full((2,), float(place))} for place, name in enumerate(names)}
    return Result(7, parts, 12, 0.5, 0.3, macs, 99, 3)


def given(arrived: Result | Failure) -> list[str]:
    assert isinstance(arrived, Result)
    return list(arrived.parts)


@pytest.mark.parametrize("late", ["drop", "send_finished_layers"])
@pytest.mark.parametrize(("transfer", "training"), [(0.0, 0.0), (4.0, 6.0), (10.0, 0.0), (0.0, 10.0), (1.0, 2.0)])
def test_who_is_in_time_is_not_touched(late: Any, transfer: float, training: float) -> None:
    sent = result()
    assert Deadline(10.0, late).cut(sent, transfer, training) is sent


@pytest.mark.parametrize(
    ("training", "finished"),
    [(8.1, 4), (10.0, 4), (10.1, 3), (13.3, 3), (13.4, 2), (20.0, 2), (20.1, 1), (40.0, 1)],
)
def test_the_last_layers_of_the_share_arrive(training: float, finished: int) -> None:
    """Two of ten seconds go into transfers, so that 8 / training of the five layers are done, rounded down."""
    arrived = Deadline(10.0, "send_finished_layers").cut(result(), 2.0, training)
    assert given(arrived) == list(NAMES[-finished:])
    assert arrived.macs == int(1000 * 8 / training)
    assert isinstance(arrived, Result)
    assert (arrived.client_id, arrived.num_images, arrived.loss, arrived.activation_bytes) == (7, 12, 0.5, 99)
    assert torch.equal(arrived.parts["head.projector"]["w"], torch.full((2,), 4.0))


def test_less_than_one_layer_is_nothing() -> None:
    arrived = Deadline(10.0, "send_finished_layers").cut(result(), 2.0, 40.1)
    assert arrived == Failure(7, "not done after 10 s", late=True, macs=int(1000 * 8 / 40.1))


def test_dropping_gives_nothing_but_work_done_in_vain() -> None:
    arrived = Deadline(10.0).cut(result(), 2.0, 16.0)
    assert arrived == Failure(7, "not done after 10 s", late=True, macs=500)
    assert not arrived.skipped


@pytest.mark.parametrize("late", ["drop", "send_finished_layers"])
@pytest.mark.parametrize("training", [0.0, 1e-9, 5.0])
def test_transfers_that_take_too_long_leave_no_time_to_train(late: Any, training: float) -> None:
    for transfer in (10.0, 25.0, 1e12):
        if transfer + training > 10:
            assert Deadline(10.0, late).cut(result(), transfer, training) == Failure(
                7, "not done after 10 s", late=True, macs=0
            )


def test_a_single_layer_is_all_or_nothing() -> None:
    deadline = Deadline(10.0, "send_finished_layers")
    assert isinstance(deadline.cut(result(("tail",)), 0.0, 10.5), Failure)
    assert given(deadline.cut(result(("tail",)), 0.0, 10.0)) == ["tail"]


def test_the_client_keeps_its_own_result() -> None:
    sent = result()
    Deadline(10.0, "send_finished_layers").cut(sent, 2.0, 16.0)
    assert list(sent.parts) == list(NAMES)
    assert sent.macs == 1000


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_seconds_are_checked(seconds: float) -> None:
    with pytest.raises(ValueError, match=r"deadline\.seconds must be above 0 and finite, got"):
        Deadline(seconds)


def test_what_late_clients_do_is_checked() -> None:
    with pytest.raises(ValueError, match=r"deadline\.late must be one of drop, send_finished_layers, got 'wait'"):
        Deadline(1.0, "wait")  # type: ignore[arg-type]
