"""Evaluation for each client, on features whose classes lie in known places."""

import pytest
import torch

from linear_eval import EvaluationSettings, Features, evaluate_by_client

SETTINGS = EvaluationSettings(knn_k=1)


def at(*places: tuple[float, float, int]) -> Features:
    """Features (x, y) with a class."""
    rows = torch.tensor(places, dtype=torch.float32)
    return Features(rows[:, :2].contiguous(), rows[:, 2].long())


def test_own_probe_follows_the_labels_of_its_client() -> None:
    """North and south name two places the other way round: what all labels say can suit one of them only."""
    north = at(*[(1, 0, 0), (1.1, 0, 0), (0, 1, 1), (0, 1.1, 1)] * 3)
    south = at(*[(1, 0, 1), (0, 1, 0)] * 2)
    test = at((1, 0.05, 0), (0.05, 1, 1), (0.05, 1.1, 1))
    turned = Features(test.x, 1 - test.y)
    scores = evaluate_by_client({"north": (north, test), "south": (south, turned)}, 2, SETTINGS)
    found = {
        name: (each.linear.accuracy, each.own_linear.accuracy if each.own_linear else None)
        for name, each in scores.items()
    }
    assert found == {"north": (100.0, 100.0), "south": (0.0, 100.0)}
    assert (scores["north"].train_images, scores["north"].test_images) == (12, 3)
    assert scores["north"].majority.accuracy == pytest.approx(100 / 3)  # of equally frequent classes the lower one
    assert scores["south"].linear.per_class_accuracy == (0.0, 0.0)


def test_clients_without_two_classes_have_the_shared_classifiers() -> None:
    train = at((1, 0, 0), (0, 1, 1), (0, 2, 1))
    scores = evaluate_by_client(
        {"all": (train, at((1, 0, 0))), "one": (at((0, 3, 1)), at((0, 1, 1))), "none": (None, at((2, 0, 0)))},
        2,
        SETTINGS,
    )
    assert [each.own_linear is None for each in scores.values()] == [False, True, True]
    assert [each.knn.accuracy for each in scores.values()] == [100.0] * 3
    assert scores["none"].majority.accuracy == 0.0  # most labels of all clients are 1
    assert scores["none"].train_images == 0
    with pytest.raises(ValueError, match="no client has labelled images"):
        evaluate_by_client({"none": (None, train)}, 2, SETTINGS)
