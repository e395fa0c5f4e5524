"""Checks of what clients send."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fedssl.protocol.messages import Failure, Parts, Result
from fedssl.server.aggregation import WeightedMean
from fedssl.server.updates import UPDATE_SAMPLE, ReceivedUpdates, check_max_update, sample_update

REFERENCE = {"p/w": torch.zeros(2), "p/n": torch.tensor(4)}


def parts(w: Tensor | None = None, n: int = 5, **others: Tensor) -> Parts:
    return {"p": {"w": torch.ones(2) if w is None else w, "n": torch.tensor(n), **others}}


def result(client: int = 0, images: int = 1, loss: float = 1.0, **changes: Any) -> Result:
    sent = changes.pop("parts", parts())
    costs = {"macs": changes.get("macs", 0), "activation_bytes": changes.get("peak", 0)}
    return Result(client, sent, images, loss, loss**2, **costs, steps=changes.get("steps", 1))


def taken(*results: Result | Failure) -> tuple[ReceivedUpdates, WeightedMean]:
    rule = WeightedMean()
    rule.begin_round({key: tensor for key, tensor in REFERENCE.items() if tensor.is_floating_point()})
    received = ReceivedUpdates(REFERENCE, rule.add)
    for one in results:
        received.take(received.check(one, ["p"]))
    return received, rule


def test_who_keeps_its_loss_counts_in_the_model_and_not_in_the_mean_loss() -> None:
    quiet = replace(result(1, images=3, parts=parts(torch.tensor([4.0, 0.0]))), loss=None, squared_loss=None)
    received, rule = taken(result(0, loss=2.0, parts=parts(torch.zeros(2))), quiet)
    assert received.mean_loss() == 2.0
    assert torch.equal(rule.finish()["p/w"], torch.tensor([3.0, 0.0]))
    assert math.isnan(taken(quiet)[0].mean_loss())


def test_good_results_are_averaged_and_added_up() -> None:
    first = result(3, images=1, loss=2.0, parts=parts(torch.tensor([0.0, 4.0])), macs=10, peak=7)
    second = result(5, images=3, loss=4.0, parts=parts(torch.tensor([4.0, 0.0])), macs=5, peak=3)
    received, rule = taken(first, second)
    assert torch.equal(rule.finish()["p/w"], torch.tensor([3.0, 1.0]))
    assert received.trained == [3, 5]
    assert received.mean_loss() == (2.0 + 3 * 4.0) / 4
    assert (received.macs, received.activation_bytes) == (15, 7)
    assert received.failures == []


def test_the_largest_counter_counts() -> None:
    received, rule = taken(*(result(parts=parts(n=n)) for n in (6, 9, 2)))
    assert received.counters["p/n"].item() == 9
    assert rule.finish().keys() == {"p/w"}


def test_counters_are_not_those_of_the_resident_model() -> None:
    counter = torch.tensor(6)
    received, _ = taken(result(parts={"p": {"w": torch.ones(2), "n": counter}}))
    counter.fill_(100)
    assert received.counters["p/n"].item() == 6


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (parts(torch.tensor([0.0, math.nan])), "p/w is not finite"),
        (parts(torch.tensor([math.inf, 0.0])), "p/w is not finite"),
        (parts(torch.zeros(3)), r"p/w has shape (3,)"),
        (parts(torch.zeros(2, 1)), r"p/w has shape (2, 1)"),
        (parts(torch.zeros(2, dtype=torch.float64)), "p/w has type torch.float64"),
        (parts(extra=torch.zeros(1)), "its update has other tensors than its task"),
        ({"p": {"w": torch.ones(2)}}, "its update has other tensors than its task"),
        ({"q": parts()["p"]}, "its update has other tensors than its task"),
        ({}, "its update has other tensors than its task"),
        (parts(torch.tensor([3e38, 0.0])), "p/w changed by inf (root mean square), more than 1e+03"),
        (parts(torch.tensor([0.0, 1e30])), "p/w changed by inf (root mean square), more than 1e+03"),
        (parts(torch.tensor([-1e4, 0.0])), "p/w changed by 7.07e+03 (root mean square), more than 1e+03"),
        (parts(n=2**62), "p/n counts more than 9007199254740992 steps"),
    ],
)
def test_bad_results_fail_and_touch_nothing(sent: Parts, reason: str) -> None:
    received, rule = taken(result(1), result(2, images=50, loss=9.0, parts=sent), result(4))
    assert received.failures == [Failure(2, reason)]
    assert received.reasons() == f"client 2: {reason}"
    assert received.trained == [1, 4]
    assert received.mean_loss() == 1.0
    assert torch.equal(rule.finish()["p/w"], torch.ones(2))


@pytest.mark.parametrize(
    "changes",
    [
        {"images": 0},
        {"loss": 1e308},
        {"loss": -1e308},
        {"loss": math.nan},
        {"squared_loss": -5.0},
        {"squared_loss": 1e300},
    ],
    ids=str,
)
def test_losses_that_cannot_be_are_dropped(changes: dict[str, float]) -> None:
    fields = {"num_images": int(changes.pop("images", 1)), "loss": 1.0, "squared_loss": 1.0} | changes
    received, _ = taken(result(1), Result(2, parts(), macs=0, activation_bytes=0, steps=1, **fields), result(4))  # type: ignore[arg-type]
    assert [failure.client_id for failure in received.failures] == [2]
    assert "cannot be" in received.failures[0].reason
    assert received.mean_loss() == 1.0


def test_losses_may_be_negative() -> None:
    assert taken(result(1, loss=-0.9))[0].trained == [1]


def test_the_bound_is_a_setting_and_grows_with_the_global_tensor() -> None:
    tight = ReceivedUpdates(REFERENCE | {"p/w": torch.full((2,), 9.0)}, WeightedMean().add, max_update=0.5)
    assert isinstance(tight.check(result(parts=parts(torch.full((2,), 13.9))), ["p"]), Result)
    assert isinstance(tight.check(result(parts=parts(torch.full((2,), 14.1))), ["p"]), Failure)
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="max_update must be above 0"):
            check_max_update(bad)


def test_check_gives_back_what_can_be_used() -> None:
    received = ReceivedUpdates(REFERENCE, WeightedMean().add)
    good, gone = result(), Failure(1, "gone")
    assert received.check(good, ["p"]) is good
    assert received.check(gone, ["p"]) is gone
    assert received.check(result(2, parts={}), ["p"]) == Failure(2, "its update has other tensors than its task")


def test_a_client_gives_the_parts_of_its_own_task() -> None:
    reference = REFERENCE | {"q/w": torch.zeros(1)}
    rule = WeightedMean()
    rule.begin_round({key: tensor for key, tensor in reference.items() if tensor.is_floating_point()})
    received = ReceivedUpdates(reference, rule.add)
    whole = result(0, images=1, parts=parts() | {"q": {"w": torch.tensor([6.0])}})
    received.take(received.check(whole, ["p", "q"]))
    received.take(received.check(result(1, images=2, parts={"q": {"w": torch.tensor([3.0])}}), ["q"]))
    refused = received.check(whole, ["q"])
    assert isinstance(refused, Failure)
    averaged = rule.finish()
    assert torch.equal(averaged["p/w"], torch.ones(2))
    assert averaged["q/w"].item() == pytest.approx((6 + 2 * 3) / 3)


def test_late_clients_are_no_failures_but_their_work_counts() -> None:
    received, _ = taken(Failure(0, "not done", late=True, macs=30), result(1, macs=12))
    assert (received.failures, [late.client_id for late in received.late], received.macs) == ([], [0], 42)


def test_sampled_updates_are_differences_and_zero_where_nothing_was_given() -> None:
    reference = REFERENCE | {"q/w": torch.tensor([1.0, 2.0])}
    sampled = sample_update(result(parts={"q": {"w": torch.tensor([4.0, 1.0])}}), reference)
    assert sampled.tolist() == [0.0, 0.0, 3.0, -1.0]
    large = {"p/w": torch.zeros(100_000)}
    assert len(sample_update(result(parts={"p": {"w": torch.ones(100_000)}}), large)) == UPDATE_SAMPLE


def test_nobody_gives_no_loss() -> None:
    received, _ = taken(Failure(0, "a"), Failure(1, "b"))
    assert math.isnan(received.mean_loss())
    assert received.reasons() == "client 0: a; client 1: b"
    many, _ = taken(*(Failure(client, "a") for client in range(6)), Failure(9, "b"))
    assert many.reasons() == "clients 0, 1, 2 and 3 more: a; client 9: b"


@pytest.mark.parametrize("steps", [0, -1, 2**60])
def test_steps_that_cannot_be_are_dropped(steps: int) -> None:
    received, _ = taken(result(1), result(2, steps=steps))
    assert [failure.reason for failure in received.failures] == [f"{steps} local steps cannot be"]
