"""SALF's two ways to average layers that only some clients finished."""

from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from updates import update_of

from fedssl.protocol.messages import part_of
from fedssl.server.aggregation import StragglerMean
from fedssl.server.aggregation.means import Rule

Tensors = dict[str, Tensor]
LAYERS = ("stem", "block.0", "tail", "head.projector")


def aggregate(rule: Any, reference: Tensors, clients: list[Tensors], images: int = 5) -> Tensors:
    mean = StragglerMean(rule)
    mean.begin_round(reference)
    for place, tensors in enumerate(clients):
        mean.add(update_of(tensors, images + 100 * place))
    return mean.finish()


def tensors(seed: int, layers: tuple[str, ...] = LAYERS) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    drawn = {f"{name}/{key}": torch.randn(3, 2, generator=generator) for name in LAYERS for key in ("w", "b")}
    return {key: tensor for key, tensor in drawn.items() if part_of(key) in layers}


def test_by_hand() -> None:
    """Two layers, two clients; the first layer came from one of them only."""
    reference = {"a/w": torch.tensor([1.0]), "b/w": torch.tensor([10.0])}
    clients = [{"a/w": torch.tensor([4.0]), "b/w": torch.tensor([20.0])}, {"b/w": torch.tensor([14.0])}]
    results = {rule: aggregate(rule, reference, clients) for rule in get_args(Rule)}
    assert {rule: tensors["b/w"].item() for rule, tensors in results.items()} == {
        "contributors": 17.0,
        "all": 17.0,
    }
    assert results["contributors"]["a/w"].item() == 4.0
    assert results["all"]["a/w"].item() == 1.0 + (4.0 - 1.0) / 2


@pytest.mark.parametrize("rule", get_args(Rule))
def test_equals_a_plain_loop(rule: str) -> None:
    reference = tensors(0)
    clients = [tensors(1), tensors(2, LAYERS[2:]), tensors(3, LAYERS[3:]), tensors(4, LAYERS[1:])]
    result = aggregate(rule, reference, clients)
    for key, old in reference.items():
        gave = [client[key].double() for client in clients if key in client]
        mean = sum(gave) / len(gave)
        expected = {
            "contributors": mean,
            "all": old.double() + len(gave) / len(clients) * (mean - old.double()),
        }[rule]
        assert torch.allclose(result[key].double(), expected, rtol=0, atol=1e-6), key


@pytest.mark.parametrize("rule", get_args(Rule))
def test_layers_that_nobody_gave_are_the_same_bits(rule: str) -> None:
    reference = tensors(0)
    result = aggregate(rule, reference, [tensors(1, LAYERS[2:]), tensors(2, LAYERS[3:])])
    assert list(result) == list(reference)
    assert all(torch.equal(result[key], reference[key]) for key in reference if part_of(key) in LAYERS[:2])
    assert all(not torch.equal(result[key], reference[key]) for key in reference if part_of(key) in LAYERS[2:])


@pytest.mark.parametrize("rule", get_args(Rule))
def test_nobody_at_all(rule: str) -> None:
    reference = tensors(0)
    assert all(torch.equal(tensor, reference[key]) for key, tensor in aggregate(rule, reference, []).items())


def test_the_mean_over_contributors_and_the_code_agree_if_nobody_is_late() -> None:
    reference, clients = tensors(0), [tensors(1), tensors(2), tensors(3)]
    contributors, everybody = (aggregate(rule, reference, clients) for rule in ("contributors", "all"))
    for key in reference:
        mean = torch.stack([client[key] for client in clients]).mean(0)
        assert torch.allclose(contributors[key], mean, atol=1e-6)
        assert torch.equal(contributors[key], everybody[key])


@pytest.mark.parametrize("rule", get_args(Rule))
def test_punctual_clients_are_averaged_as_they_are(rule: str) -> None:
    names = tuple(f"block.{index}" for index in range(15))
    reference = {f"{name}/w": torch.zeros(1) for name in names}
    result = aggregate(rule, reference, [{f"{name}/w": torch.ones(1) for name in names}] * 10)
    assert all(tensor.item() == pytest.approx(1.0) for tensor in result.values())


def test_clients_tensors_are_neither_kept_nor_changed() -> None:
    reference, resident = {"a/w": torch.zeros(2)}, torch.tensor([1.0, 2.0])
    mean = StragglerMean()
    mean.begin_round(reference)
    mean.add(update_of({"a/w": resident}, 1))
    resident.copy_(torch.tensor([3.0, 6.0]))
    mean.add(update_of({"a/w": resident}, 1))
    assert torch.equal(resident, torch.tensor([3.0, 6.0]))
    resident.fill_(50.0)
    assert torch.equal(mean.finish()["a/w"], torch.tensor([2.0, 4.0]))
    assert torch.equal(reference["a/w"], torch.zeros(2))


def test_every_round_starts_anew_and_keeps_the_dtype() -> None:
    mean = StragglerMean("all")
    for value in (1.0, 5.0):
        mean.begin_round({"a/w": torch.zeros(1, dtype=torch.bfloat16)})
        mean.add(update_of({"a/w": torch.tensor([value])}, 2))
        result = mean.finish()["a/w"]
        assert (result.item(), result.dtype) == (value, torch.bfloat16)


def test_the_rule_is_checked() -> None:
    with pytest.raises(ValueError, match="rule must be one of contributors, all, got 'median'"):
        StragglerMean("median")  # type: ignore[arg-type]
