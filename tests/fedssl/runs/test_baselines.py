"""The sentence that says which baselines an encoder does not surpass."""

from typing import Any

import pytest

from fedssl.runs.baselines import caution
from fedssl.runs.results import KNN, KNN_CENTRED, LINEAR, quality_table

ABOVE = {"test_images": 400, "knn_top1": 90.0, "knn_centred_top1": 90.0, "linear_top1": 90.0, "majority_top1": 10.0}


def test_an_encoder_above_all_baselines_needs_no_caution() -> None:
    beaten = {f"{name}_{measure.key}": 80.0 for name in ("raw_pixels", "random_init") for measure in (KNN, LINEAR)}
    assert caution(ABOVE | beaten) == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"raw_pixels_knn_top1": 88.0},
            "not clearly above raw pixels (kNN 90.0 against 88.0 %), by 95 % intervals",
        ),
        (
            {"random_init_linear_top1": 95.0, "raw_pixels_knn_centred_top1": 90.0},
            "random init (linear probe 90.0 against 95.0 %); nor above raw pixels (centred kNN 90.0 against 90.0 %)",
        ),
        ({"finetuned_top1": 70.0, "random_init_finetuned_top1": 71.0}, "random init (fine-tuned 70.0 against 71.0 %)"),
        ({"majority_top1": 89.0}, "the most frequent class (kNN 90.0 against 89.0 %, centred kNN"),
    ],
)
def test_baselines_within_the_interval_are_named(change: dict[str, float], said: str) -> None:
    assert said in caution(ABOVE | change)


def test_a_language_model_is_compared_with_counting() -> None:
    results = {"perplexity": 8.0, "ngram_perplexity": 6.5}
    assert "no better than counting the 4-grams of the same training text: perplexity 8.00, by" in caution(results)
    assert caution(results | {"ngram_perplexity": 8.5}) == ""


def test_the_table_has_baselines_and_intervals() -> None:
    results: dict[str, Any] = ABOVE | {"raw_pixels_knn_top1": 88.0, "random_init_finetuned_top1": 50.0}
    table = quality_table(results, (KNN, KNN_CENTRED, LINEAR), "t", intervals=True)
    assert table.rows[0] == ["trained", *["90.00\n(86.7 to 92.6)"] * 3]
    assert [row[0] for row in table.rows] == ["trained", "raw pixels", "from scratch", "most frequent class"]
    assert table.rows[-1][1:] == ["", "", "10.00\n(7.4 to 13.3)"]
