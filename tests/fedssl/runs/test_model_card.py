"""Card beside an encoder."""

from types import SimpleNamespace
from typing import Any

import yaml
from finished_runs import results

from fedssl.runs.model_card import model_card

DATA: Any = SimpleNamespace(dataset="folder", eval_dataset="digits", root="/secret", trained_on="1,200 images")
COSTS = {f"{key}_max_client": 1e9 for key in ("down_bytes", "up_bytes", "macs")}


def test_a_card_has_the_results_and_leaves_the_licence_to_the_user() -> None:
    card = model_card(results(knn=60.0, test_images=100, **COSTS), DATA)
    _, head, text = card.split("---\n", 2)
    assert yaml.safe_load(head)["library_name"] == "timm"
    assert "license" not in yaml.safe_load(head)
    assert "1,200 images, divided among 6 clients." in text
    assert "| trained | 60.00 | 61.00 |" in text
    assert "Caution: the encoder is not clearly above random init" in text
    assert "| mean | 80.00 | 80.00 | 1,000.00 |" in text
    assert "UNFINISHED" not in text
    assert "/secret" not in text


def test_a_card_says_why_there_are_no_accuracies() -> None:
    found = {key: value for key, value in results().items() if "top1" not in key and "per_client" not in key}
    card = model_card(found | {"not_evaluated": "the images have no labels"}, DATA)
    assert "Not evaluated, as the images have no labels." in card
    assert "| trained" not in card
