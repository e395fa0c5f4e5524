"""HetLoRA's mean, compared with padded matrices."""

import pytest
import torch
from torch import Tensor
from updates import update_of

from fedssl import NormWeightedMean
from fedssl.server.aggregation.means import update_norm

WIDTH, SIZES = 5, (1, 2)


def client(seed: int, parts: int) -> dict[str, Tensor]:
    """Adapters of two blocks in one or two parts, of rank 1 or 3, and a classifier."""
    generator = torch.Generator().manual_seed(seed)
    given = {"head.classifier/weight": torch.randn(2, WIDTH, generator=generator)}
    for block in range(2):
        for number, rank in enumerate(SIZES[:parts]):
            for target in ("query", "value"):
                name = f"adapter.{block}.{number}/{target}"
                given[f"{name}.down"] = torch.randn(rank, WIDTH, generator=generator)
                given[f"{name}.up"] = torch.randn(WIDTH, rank, generator=generator)
    return given


def products(tensors: dict[str, Tensor], parts: int) -> list[Tensor]:
    """``up @ down`` of each block and target."""
    return [
        sum(
            (tensors[f"adapter.{b}.{n}/{t}.up"] @ tensors[f"adapter.{b}.{n}/{t}.down"] for n in range(parts)),
            torch.zeros(WIDTH, WIDTH),
        )
        for b in range(2)
        for t in ("query", "value")
    ]


def aggregate(*given: tuple[dict[str, Tensor], int]) -> dict[str, Tensor]:
    rule = NormWeightedMean()
    rule.begin_round(client(9, 2))
    for tensors, images in given:
        rule.add(update_of(tensors, images))
    return rule.finish()


@pytest.mark.parametrize("parts", [1, 2])
def test_the_norm_of_an_update(parts: int) -> None:
    tensors = client(0, parts)
    adapters = {key: tensor for key, tensor in tensors.items() if key.startswith("adapter")}
    expected = sum(float(each.square().sum()) for each in products(tensors, parts)) ** 0.5
    assert update_norm(adapters) == pytest.approx(expected, rel=1e-5)


def test_padding_and_weights_by_hand() -> None:
    small, large = client(0, 1), client(1, 2)
    norms = [torch.stack(products(*each)).norm() for each in ((small, 1), (large, 2))]
    found = aggregate((small, 30), (large, 10))
    for key, tensor in large.items():
        padded = small.get(key, torch.zeros_like(tensor))
        weights = torch.tensor([30.0, 10.0]) if key.startswith("head") else torch.stack(norms)
        expected = (weights[0] * padded + weights[1] * tensor) / weights.sum()
        assert torch.allclose(found[key], expected, atol=1e-5), key


def test_ranks_that_nobody_trained_stay() -> None:
    small, reference = client(0, 1), client(9, 2)
    found = aggregate((small, 3))
    for key, tensor in reference.items():
        expected = small.get(key, tensor)
        assert torch.allclose(found[key], expected, atol=1e-5), key


def test_updates_of_zero_count_alike() -> None:
    first, second = ({k: v * (0 if k.endswith(".up") else 1) for k, v in client(s, 1).items()} for s in (0, 1))
    found = aggregate((first, 30), (second, 10))
    key = "adapter.0.0/query.down"
    assert torch.allclose(found[key], (first[key] + second[key]) / 2, atol=1e-5)
