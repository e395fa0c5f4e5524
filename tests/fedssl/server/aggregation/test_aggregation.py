"""The weighted mean."""

import torch
from torch import Tensor
from updates import update_of

from fedssl.server.aggregation import WeightedMean

Clients = list[tuple[dict[str, Tensor], int]]


def aggregate(reference: dict[str, Tensor], clients: Clients) -> dict[str, Tensor]:
    rule = WeightedMean()
    rule.begin_round(reference)
    for tensors, num_images in clients:
        rule.add(update_of(tensors, num_images))
    return rule.finish()


def test_mean_by_hand() -> None:
    reference = {"w": torch.tensor([10.0, 20.0]), "b": torch.tensor(1.0)}
    first = {"w": torch.tensor([0.0, 4.0]), "b": torch.tensor(5.0)}
    second = {"w": torch.tensor([8.0, 0.0]), "b": torch.tensor(1.0)}
    result = aggregate(reference, [(first, 3), (second, 1)])
    assert torch.equal(result["w"], torch.tensor([2.0, 3.0]))  # (3*0 + 8)/4, (3*4 + 0)/4
    assert torch.equal(result["b"], torch.tensor(4.0))  # (3*5 + 1)/4


def test_mean_equals_the_naive_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    reference = {"w": torch.randn(7, 5, generator=generator)}
    clients = [({"w": torch.randn(7, 5, generator=generator)}, n) for n in (1, 250, 33, 7)]
    naive = sum(c["w"].double() * n for c, n in clients) / 291
    assert torch.allclose(aggregate(reference, clients)["w"].double(), naive, atol=1e-6)


def test_a_single_client_is_given_back() -> None:
    generator = torch.Generator().manual_seed(1)
    reference = {"w": torch.randn(50, generator=generator)}
    client = {"w": torch.randn(50, generator=generator)}
    assert torch.allclose(aggregate(reference, [(client, 37)])["w"], client["w"], rtol=0, atol=1e-6)


def test_small_updates_of_large_weights_keep_their_digits() -> None:
    large = torch.tensor([1e4])
    ulp = 2**-10
    clients: Clients = [({"w": large + steps * ulp}, 1000) for steps in (2, 4)]
    assert torch.equal(aggregate({"w": large}, clients)["w"], large + 3 * ulp)
    equal: Clients = [({"w": torch.tensor([0.1])}, n) for n in (3, 7, 11)]
    assert torch.equal(aggregate({"w": torch.tensor([0.1])}, equal)["w"], torch.tensor([0.1]))


def test_dtype_is_that_of_the_reference() -> None:
    reference = {"w": torch.zeros(2, dtype=torch.bfloat16)}
    result = aggregate(reference, [({"w": torch.ones(2, dtype=torch.bfloat16)}, 4)])
    assert result["w"].dtype == torch.bfloat16
    assert torch.equal(result["w"], torch.ones(2, dtype=torch.bfloat16))


def test_clients_tensors_are_not_kept() -> None:
    reference = {"w": torch.zeros(3)}
    resident = torch.tensor([1.0, 2.0, 3.0])
    rule = WeightedMean()
    rule.begin_round(reference)
    rule.add(update_of({"w": resident}, 1))
    resident.copy_(torch.tensor([3.0, 4.0, 5.0]))
    rule.add(update_of({"w": resident}, 1))
    resident.fill_(99.0)
    assert torch.equal(rule.finish()["w"], torch.tensor([2.0, 3.0, 4.0]))


def test_clients_and_reference_are_not_changed() -> None:
    reference, client = {"w": torch.full((2,), 3.0)}, {"w": torch.ones(2)}
    aggregate(reference, [(client, 2), (client, 5)])
    assert torch.equal(client["w"], torch.ones(2))
    assert torch.equal(reference["w"], torch.full((2,), 3.0))


def test_every_round_starts_anew() -> None:
    rule = WeightedMean()
    for value in (1.0, 5.0):
        rule.begin_round({"w": torch.zeros(1)})
        rule.add(update_of({"w": torch.tensor([value])}, 2))
        assert rule.finish()["w"].item() == value
