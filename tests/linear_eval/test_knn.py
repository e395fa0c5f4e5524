from math import exp

import pytest
import torch
from torch import Tensor

from linear_eval import Features, knn_predict

BANK = Features(torch.tensor([[2.0, 0.0], [0.6, 0.8], [0.0, 5.0]]), torch.tensor([0, 1, 1]))


def naive(bank: Features, query: Tensor, num_classes: int, k: int, temperature: float) -> list[int]:
    predicted = []
    for q in query.double():
        similarity = [float(q @ b / (q.norm() * b.norm())) for b in bank.x.double()]
        nearest = sorted(range(len(similarity)), key=lambda i: -similarity[i])[:k]
        votes = [0.0] * num_classes
        for i in nearest:
            votes[int(bank.y[i])] += exp(similarity[i] / temperature)
        predicted.append(votes.index(max(votes)))
    return predicted


def test_worked_example() -> None:
    # similarities of (1, 0) to the bank: 1.0, 0.6, 0.0
    query = torch.tensor([[3.0, 0.0]])
    # cold: exp(10) = 22026 for class 0, exp(6) + exp(0) = 404 for class 1
    assert knn_predict(BANK, query, num_classes=2, k=3, temperature=0.1).tolist() == [0]
    # warm: exp(0.1) = 1.105 for class 0, exp(0.06) + exp(0) = 2.062 for class 1
    assert knn_predict(BANK, query, num_classes=2, k=3, temperature=10.0).tolist() == [1]
    # two neighbours, one vote each, the nearer one is heavier
    assert knn_predict(BANK, query, num_classes=2, k=2, temperature=10.0).tolist() == [0]


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (30, 1.0), (500, 0.5)])
def test_agrees_with_a_naive_loop_whatever_the_chunk(
    k: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(1)
    bank = Features(torch.randn(60, 5, generator=generator), torch.randint(0, 4, (60,), generator=generator))
    query = torch.randn(23, 5, generator=generator)
    expected = naive(bank, query, 4, k, temperature)
    for chunk_bytes in (1, 7 * 60 * 4, 2**20):
        monkeypatch.setattr("linear_eval.knn.CHUNK_BYTES", chunk_bytes)
        assert knn_predict(bank, query, 4, k, temperature).tolist() == expected


def test_too_many_neighbours_means_the_whole_bank() -> None:
    query = torch.tensor([[1.0, 0.2], [0.1, 1.0]])
    assert torch.equal(knn_predict(BANK, query, 2, k=99), knn_predict(BANK, query, 2, k=3))


def test_ties_take_the_earlier_feature_and_the_lower_class() -> None:
    same = torch.ones(40, 3)
    labels = torch.tensor([3] * 4 + [1] * 4 + [0] * 32)
    query = torch.ones(2, 3)
    assert knn_predict(Features(same, labels), query, 4, k=4).tolist() == [3, 3]
    assert knn_predict(Features(same, labels), query, 4, k=8).tolist() == [1, 1]


def test_a_low_temperature_does_not_overflow_and_zero_features_are_allowed() -> None:
    assert knn_predict(BANK, torch.tensor([[1.0, 0.0], [0.0, 0.0]]), 2, k=2, temperature=1e-3).tolist() == [
        0,
        0,
    ]


def test_no_queries_give_no_predictions() -> None:
    assert knn_predict(BANK, torch.zeros(0, 2), 2).shape == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.zeros(2, 3)}, r"\(M, 2\)"),
        ({"query": torch.zeros(2)}, r"\(M, 2\)"),
        ({"num_classes": 1}, "below num_classes = 1, got 1"),
    ],
)
def test_refuses(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"query": torch.zeros(2, 2), "num_classes": 2}
    with pytest.raises(ValueError, match=message):
        knn_predict(BANK, **(arguments | change))  # type: ignore[arg-type]


@pytest.mark.parametrize(("k", "temperature"), [(0, 0.1), (1, 0.0), (1, float("nan"))])
def test_settings_out_of_range_are_refused(k: int, temperature: float) -> None:
    bank = Features(torch.ones(2, 2), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="k must be at least 1 and temperature above 0"):
        knn_predict(bank, torch.ones(1, 2), 2, k, temperature)
