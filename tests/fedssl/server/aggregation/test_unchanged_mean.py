"""The two rules for layers that not every client trains."""

import torch
from torch import Tensor
from updates import update_of

from fedssl import UnchangedMean, WeightedMean
from fedssl.server.aggregation import Aggregation

CLIENTS = [(3, ("low", "mid", "top")), (5, ("mid", "top")), (2, ("top",))]


def tensor(seed: int) -> Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))


REFERENCE = {name: tensor(i) for i, name in enumerate(("none", "low", "mid", "top"))}
UPDATES = [{name: tensor(10 * client + i) for i, name in enumerate(names)} for client, (_, names) in enumerate(CLIENTS)]


def aggregate(rule: Aggregation, updates: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    rule.begin_round(REFERENCE)
    for (images, _), update in zip(CLIENTS, updates, strict=True):
        rule.add(update_of(update, images))
    return rule.finish()


def test_by_hand() -> None:
    """Three of ten images move the layer by three tenths."""
    rule = UnchangedMean()
    rule.begin_round({"a": torch.tensor([1.0]), "b": torch.tensor([0.0])})
    rule.add(update_of({"a": torch.tensor([11.0]), "b": torch.tensor([10.0])}, 3))
    rule.add(update_of({"b": torch.tensor([20.0])}, 7))
    assert {key: value.item() for key, value in rule.finish().items()} == {"a": 4.0, "b": 17.0}


def test_it_is_fedavg_in_which_a_frozen_layer_counts_as_unchanged() -> None:
    completed = [REFERENCE | update for update in UPDATES]
    expected, found = aggregate(WeightedMean(), completed), aggregate(UnchangedMean(), UPDATES)
    assert found.keys() == REFERENCE.keys()
    for key in REFERENCE:
        torch.testing.assert_close(found[key], expected[key])
    assert torch.equal(found["none"], REFERENCE["none"])


def test_the_other_rule_is_the_mean_over_contributors() -> None:
    found = aggregate(WeightedMean(), UPDATES)
    for key in REFERENCE:
        given = [(images, update[key]) for (images, _), update in zip(CLIENTS, UPDATES, strict=True) if key in update]
        total = sum(images for images, _ in given)
        expected = sum((images * value / total for images, value in given), torch.zeros(4, 3))
        torch.testing.assert_close(found[key], expected if given else REFERENCE[key])


def test_a_round_starts_anew() -> None:
    rule = UnchangedMean()
    first = aggregate(rule, UPDATES)
    again = aggregate(rule, UPDATES)
    assert all(torch.equal(first[key], again[key]) for key in REFERENCE)
