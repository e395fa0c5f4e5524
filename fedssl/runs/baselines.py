"""Comparison of a run's encoder with baselines that learnt nothing, in one sentence."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from fedssl.runs.results import ENCODERS, KNN, KNN_CENTRED, LINEAR, Measure
from linear_eval import is_above
from linear_eval.ngram import ORDER

JUDGED = {"kNN": KNN, "centred kNN": KNN_CENTRED, "linear probe": LINEAR}
TUNED = Measure("fine-tuned top-1 %", "finetuned_top1")
MAJORITY = "majority_"
BASELINES = {name: prefix for name, prefix in ENCODERS.items() if prefix} | {"the most frequent class": MAJORITY}


def caution(results: dict[str, Any]) -> str:
    """Name the baselines that the encoder does not surpass, and in what; empty if it surpasses all that were measured.

    An accuracy surpasses another if the 95 % interval of their difference, by the number of test images, is above 0.
    """
    if "ngram_perplexity" in results:
        own, counted = results["perplexity"], results["ngram_perplexity"]
        said = f"Caution: the language model is no better than counting the {ORDER}-grams of the same training text"
        return "" if own < counted else f"{said}: perplexity {own:.2f}, by counting {counted:.2f}."
    doubts = [
        f"{name} ({', '.join(found)})" for name, prefix in BASELINES.items() if (found := _not_above(results, prefix))
    ]
    if not doubts:
        return ""
    images = f"{results['test_images']:,} test images"
    return f"Caution: the encoder is not clearly above {'; nor above '.join(doubts)}, by 95 % intervals of {images}."


def _not_above(results: dict[str, Any], prefix: str) -> list[str]:
    """Compare each accuracy with that of a baseline; fine-tuned, with that of training from scratch."""
    found = []
    for name, measure in (JUDGED | {"fine-tuned": TUNED}).items():
        own = results.get(measure.key)
        other = results.get("majority_top1" if prefix == MAJORITY else prefix + measure.key)
        if own is not None and other is not None and not is_above(own, other, results["test_images"]):
            found.append(f"{name} {own:.1f} against {other:.1f} %")
    return found


def print_caution(results: dict[str, Any]) -> None:
    """Print what the encoder does not surpass; nothing if it surpasses all baselines."""
    if said := caution(results):
        Console().print(said, style="bold yellow", highlight=False, soft_wrap=True)
