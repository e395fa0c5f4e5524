import pytest
import torch

from linear_eval import classification_metrics, macro_auroc


def test_three_classes_by_hand() -> None:
    target = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    predicted = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    metrics = classification_metrics(target, predicted, 3)
    assert metrics.confusion == ((3, 1, 0), (0, 1, 1), (0, 0, 2))
    assert metrics.accuracy == pytest.approx(100 * 6 / 8)
    assert metrics.per_class_accuracy == pytest.approx((75.0, 50.0, 100.0))
    assert metrics.mean_per_class_accuracy == pytest.approx(75.0)
    assert metrics.recall == metrics.mean_per_class_accuracy
    assert metrics.precision == pytest.approx(100 * (1 + 1 / 2 + 2 / 3) / 3)
    assert metrics.f1 == pytest.approx(100 * (6 / 7 + 1 / 2 + 4 / 5) / 3)


def test_absent_class_is_left_out_of_the_means_but_its_prediction_is_a_mistake() -> None:
    # class 1 has no images and is predicted once; class 2 has images and is never predicted
    metrics = classification_metrics(torch.tensor([0, 0, 2, 2]), torch.tensor([0, 0, 0, 1]), 3)
    assert metrics.confusion == ((2, 0, 0), (0, 0, 0), (1, 1, 0))
    assert metrics.per_class_accuracy == (100.0, None, 0.0)
    assert metrics.accuracy == 50.0
    assert metrics.mean_per_class_accuracy == 50.0
    assert metrics.precision == pytest.approx(100 * (2 / 3 + 0) / 2)
    assert metrics.f1 == pytest.approx(100 * (4 / 5 + 0) / 2)


@pytest.mark.parametrize(
    ("target", "predicted", "message"),
    [
        ([0, 1], [0], r"must be \(N,\) .*\[2\]\) and torch.Size\(\[1\]"),
        ([], [], "with N >= 1"),
        ([0, 3], [0, 1], r"target must be within 0..2, got 0..3"),
        ([0, 1], [-1, 1], r"predicted must be within 0..2, got -1..1"),
        ([[0], [1]], [0, 1], r"must be \(N,\)"),
    ],
)
def test_refuses(target: list[int], predicted: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classification_metrics(torch.tensor(target), torch.tensor(predicted), 3)


def test_macro_auroc_by_hand() -> None:
    target = torch.tensor([0, 0, 1, 2])
    probabilities = torch.tensor([[0.6, 0.4], [0.2, 0.8], [0.3, 0.7], [0.5, 0.5]])
    # Class 0: of its 4 pairs with others 2 are in order. Class 1: 2 of 3. Class 2 has no column, which is chance.
    found = macro_auroc(target, probabilities, torch.tensor([0, 1]))
    assert found == pytest.approx(100 * (2 / 4 + 2 / 3 + 1 / 2) / 3)
    assert macro_auroc(target[:2], probabilities[:2], torch.tensor([0, 1])) is None
