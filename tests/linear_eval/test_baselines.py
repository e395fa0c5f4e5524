"""Baselines by hand: pixels, the most frequent class, a counter of n-grams; and intervals against published ones."""

import pytest
import torch

from linear_eval import is_above, majority_metrics, ngram_perplexity, pixel_features, wilson


def test_pixels_are_pooled_to_equal_cells_only_where_images_are_larger() -> None:
    images = torch.arange(16).reshape(1, 1, 4, 4).byte() * 15
    assert pixel_features(images, 4).tolist() == [[pytest.approx(i / 17) for i in range(16)]]
    cells = torch.tensor([[2.5, 4.5, 10.5, 12.5]]) * 15 / 255
    torch.testing.assert_close(pixel_features(images, 2), cells)


def test_the_most_frequent_class_is_right_as_often_as_it_occurs() -> None:
    found = majority_metrics(torch.tensor([0, 2, 2, 1]), torch.tensor([2, 2, 2, 0, 1]), 3)
    assert (found.accuracy, found.mean_per_class_accuracy) == (60.0, pytest.approx(100 / 3))
    assert found.f1 == pytest.approx(25.0)  # of the only class it names: precision 0.6, recall 1


def test_bigrams_by_hand() -> None:
    # Counted: 0 once, 1 twice (so P_1 = (1 + 2/2) / (3 + 2) of 0 and (2 + 2/2) / (3 + 2) of 1), and after 0 always 1.
    train, test = torch.tensor([[0, 1], [0, 1], [1, 0]]), torch.tensor([[0, 1], [1, 1]])
    zero, one = (1 + 2 * 0.5) / 5, (2 + 2 * 0.5) / 5
    after_zero = (2 + 1 * one) / (2 + 1)
    after_one = (0 + 1 * one) / (1 + 1)
    found = ngram_perplexity(train, test, vocabulary=2, order=2)
    assert found.characters == 2
    assert found.as_dict()["perplexity"] == pytest.approx((after_zero * after_one) ** -0.5)
    assert zero + one == 1


@pytest.mark.parametrize("order", [1, 3, 9])
def test_ngrams_are_probabilities_and_unknown_contexts_fall_back(order: int) -> None:
    train = torch.randint(0, 4, (30, 7), generator=torch.Generator().manual_seed(0))
    texts = torch.tensor([[4, 4, 4, 4, 4, 4, after] for after in range(5)])
    nats = torch.tensor([ngram_perplexity(train, text[None], 5, order).nats for text in texts])
    shared = ngram_perplexity(train, texts[:1, :6], 5, order).nats  # all but the last character
    assert float((shared - nats).exp().sum()) == pytest.approx(1)


def test_wilson_as_published() -> None:
    # Newcombe, Statistics in Medicine 17, 1998, table I, method 3
    for right, images, low, high in ((81, 263, 25.53, 36.62), (15, 148, 6.24, 16.05), (0, 20, 0.0, 16.11)):
        assert wilson(100 * right / images, images) == pytest.approx((low, high), abs=0.006)
    assert wilson(100.0, 29) == pytest.approx((88.30, 100.0), abs=0.01)


def test_above_is_beyond_the_interval_of_the_difference() -> None:
    # By hand for 70 images: 80 is at least 69.2, 60 at most 70.7, and 20 is more than hypot(10.8, 10.7) = 15.2.
    assert is_above(80.0, 60.0, 70)
    # For 30 images these limits are 62.7 and 75.4, and 20 is less than hypot(17.3, 15.4) = 23.1.
    assert not is_above(80.0, 60.0, 30)
    assert not is_above(100.0, 100.0, 10_000)
    assert not is_above(50.0, 60.0, 10_000)
