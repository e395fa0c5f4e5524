"""L-DAWA by hand and against a loop."""

import math

import pytest
import torch
from torch import Tensor
from updates import update_of

from fedssl.server.aggregation import LDAWA
from fedssl.server.aggregation.means import angular_weights

Tensors = dict[str, Tensor]


def aggregate(reference: Tensors, *clients: Tensors) -> Tensors:
    rule = LDAWA()
    rule.begin_round(reference)
    for place, tensors in enumerate(clients):
        rule.add(update_of(tensors, 10**place))
    return rule.finish()


def test_by_hand() -> None:
    """Cosines 1 (same direction), 0.6 and 0 (at a right angle); images do not weigh."""
    reference = {"w": torch.tensor([2.0, 0.0])}
    clients = [{"w": torch.tensor(value)} for value in ([5.0, 0.0], [3.0, 4.0], [0.0, 7.0])]
    mean = (torch.tensor([5.0, 0.0]) + 0.6 * torch.tensor([3.0, 4.0])) / 3
    assert torch.allclose(aggregate(reference, *clients)["w"], mean)


def test_a_part_has_one_cosine_and_batch_statistics_none() -> None:
    """The cosine of weight (3, 4) alone with (4, 0) is 3 / 5; with a bias of 12, where 0 was, it is 3 / 13."""
    reference = {
        "block.0/w": torch.tensor([4.0, 0.0]),
        "block.0/b": torch.zeros(1),
        "block.0/running_mean": torch.ones(1),
    }
    client = {
        "block.0/w": torch.tensor([3.0, 4.0]),
        "block.0/b": torch.tensor([12.0]),
        "block.0/running_mean": -torch.ones(1),
    }
    result = aggregate(reference, client)
    assert torch.allclose(result["block.0/w"], torch.tensor([3.0, 4.0]) * 3 / 13)
    assert torch.allclose(result["block.0/b"], torch.tensor([12.0]) * 3 / 13)
    assert torch.equal(result["block.0/running_mean"], -torch.ones(1))


def test_equals_a_plain_loop_where_some_layers_are_missing() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a/w": (4, 3, 2), "b/w": (5,), "c/w": (1, 6)}
    reference = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    clients = [{key: torch.randn(shape, generator=generator) for key, shape in shapes.items()} for _ in range(4)]
    del clients[0]["a/w"], clients[2]["a/w"], clients[3]["b/w"]
    result = aggregate(reference, *clients)
    for key, old in reference.items():
        gave = [client[key].double() for client in clients if key in client]
        cosines = [float((old.double() * own).sum() / old.double().norm() / own.norm()) for own in gave]
        expected = sum(cosine * own for cosine, own in zip(cosines, gave, strict=True)) / len(gave)
        assert torch.allclose(result[key].double(), expected, atol=1e-6), key


def test_layers_that_nobody_gave_are_the_same_bits() -> None:
    reference = {"a": torch.tensor([0.1, 0.7]), "b": torch.tensor([1.0])}
    result = aggregate(reference, {"b": torch.tensor([3.0])})
    assert torch.equal(result["a"], reference["a"])
    assert result["b"].item() == pytest.approx(3.0)
    assert list(result) == ["a", "b"]


def test_a_client_that_did_not_move_is_given_back() -> None:
    weights = torch.randn(200, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(aggregate({"w": weights}, {"w": weights}, {"w": weights})["w"], weights, atol=1e-6)


def test_angular_weights() -> None:
    ones, zeros = torch.ones(3, 3), torch.zeros(3, 3)

    def cosine(reference: Tensor, own: Tensor) -> float:
        return angular_weights({"w": reference}, {"w": own})["w"]

    assert cosine(ones, 0.01 * ones) == pytest.approx(1.0)
    assert cosine(ones, -ones) == pytest.approx(-1.0)
    assert cosine(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])) == pytest.approx(math.sqrt(0.5))
    assert [cosine(a, b) for a, b in ((zeros, ones), (ones, zeros), (zeros, zeros))] == [1.0, 1.0, 1.0]


def test_a_bias_that_starts_at_zero_can_leave_it() -> None:
    assert torch.equal(aggregate({"b": torch.zeros(2)}, {"b": torch.tensor([1.0, 3.0])})["b"], torch.tensor([1.0, 3.0]))


def test_clients_tensors_are_neither_kept_nor_changed() -> None:
    reference, resident = {"w": torch.tensor([1.0, 0.0])}, torch.tensor([2.0, 0.0])
    rule = LDAWA()
    rule.begin_round(reference)
    rule.add(update_of({"w": resident}, 1))
    resident.copy_(torch.tensor([4.0, 0.0]))
    rule.add(update_of({"w": resident}, 1))
    assert torch.equal(resident, torch.tensor([4.0, 0.0]))
    resident.fill_(50.0)
    assert torch.equal(rule.finish()["w"], torch.tensor([3.0, 0.0]))
    assert torch.equal(reference["w"], torch.tensor([1.0, 0.0]))


def test_every_round_starts_anew_and_keeps_the_dtype() -> None:
    rule = LDAWA()
    for value in (1.0, 5.0):
        rule.begin_round({"w": torch.ones(1, dtype=torch.bfloat16)})
        rule.add(update_of({"w": torch.tensor([value])}, 2))
        result = rule.finish()["w"]
        assert (result.item(), result.dtype) == (value, torch.bfloat16)
