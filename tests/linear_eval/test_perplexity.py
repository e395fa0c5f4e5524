"""Perplexity by hand."""

import math

import pytest
import torch

from linear_eval import Perplexity


def test_uniform_predictions_have_the_perplexity_of_their_number() -> None:
    found = (Perplexity() + torch.full((10,), math.log(8.0))).as_dict()
    assert found == {"perplexity": pytest.approx(8), "bits_per_character": pytest.approx(3)}


def test_batches_count_by_their_characters() -> None:
    total = Perplexity() + torch.tensor([math.log(2.0)]) + torch.full((3,), math.log(4.0))
    assert total.characters == 4
    assert total.as_dict()["bits_per_character"] == pytest.approx((1 + 3 * 2) / 4)


def test_a_diverged_model_has_infinite_perplexity() -> None:
    assert (Perplexity() + torch.tensor([1e4])).as_dict()["perplexity"] == math.inf
