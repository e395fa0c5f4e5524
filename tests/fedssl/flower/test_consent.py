"""What a node's operator allows."""

import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="the extra fedssl[flower] is not installed")

from fedssl.flower.consent import Consent, ConsentError, read_consent, time_limit

RECIPE: dict[str, Any] = {
    "model": {
        "class_path": "fedssl.FederatedSSL",
        "init_args": {
            "local_epochs": 3,
            "method": {"class_path": "ssl_methods.SimCLR", "init_args": {"temperature": 0.2}},
            "heads": None,
        },
    },
    "data": {"class_path": "fedssl.FederatedData", "init_args": {"root": "/data/sets", "download": False}},
}


def consent(tmp_path: Path, text: str) -> Consent:
    path = tmp_path / "consent.yaml"
    path.write_text(text)
    return read_consent(str(path))


@pytest.mark.parametrize(
    "text",
    [
        'classes: ["fedssl.*", "ssl_methods.SimCLR"]',
        "settings: {data.download: false, model.local_epochs: [1, 3]}",
        "at-most: {model.local_epochs: 3, model.method.temperature: 0.5}",
        "minutes: 10",
    ],
)
def test_what_is_within_the_limits_passes(text: str, tmp_path: Path) -> None:
    consent(tmp_path, text).check_settings(RECIPE, "/data")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('classes: ["fedssl.*"]', "the class ssl_methods.SimCLR at model.init_args.method.class_path"),
        ("settings: {data.download: true}", "data.download is False"),
        ("settings: {data.download: 0}", "data.download is False"),
        ("at-most: {model.local_epochs: 2}", "model.local_epochs is 3: .*consent.yaml allows at most 2"),
        ("at-most: {model.heads: 2}", "model.heads is None"),
        ("at-most: {model.rounds: 2}", "the recipe has no model.rounds"),
    ],
)
def test_what_is_beyond_the_limits_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConsentError, match=message):
        consent(tmp_path, text).check_settings(RECIPE, "/data")


def test_a_recipe_opens_no_other_folder(tmp_path: Path) -> None:
    own = consent(tmp_path, "minutes: 1")
    with pytest.raises(ConsentError, match=r"names the path /data/sets at data.init_args.root, which is not in this"):
        own.check_settings(RECIPE, "/data/others")
    own.check_settings(RECIPE, None)  # of a node with its own images only, which loads no data set
    heads = {**RECIPE, "model": {"init_args": {"heads": "weights.safetensors"}}}
    with pytest.raises(ConsentError, match=r"names the path weights.safetensors at model"):
        own.check_settings(heads, None)
    climbs = {"data": {"init_args": {"root": "/data/sets", "dataset": "medmnist:../../etc/passwd"}}}
    with pytest.raises(ConsentError, match="dataset"):
        own.check_settings(climbs, "/data")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "must hold keys and values; the keys are recipes, classes"),
        ("epochs: 3", "unknown epochs; allowed are recipes"),
        ("recipes: abc", "recipes must be a list of texts"),
        ("at-most: [1]", "at-most must be a table"),
        ("at-most: {model.rounds: many}", "at-most model.rounds must be a number, got 'many'"),
        ("settings: {model.x: {a: 1}}", "settings must be values"),
        ("minutes: -1", "minutes must be a number from 0, got -1"),
        ("rounds-a-day: often", "rounds-a-day must be a number"),
        ("withhold: [images]", "withhold 'images': allowed are loss, counts, operations"),
        ("withhold: [counts]", "withhold operations beside counts"),
    ],
)
def test_files_with_mistakes_are_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        consent(tmp_path, text)


def test_rounds_of_a_day() -> None:
    limited = Consent(rounds_a_day=2, path="consent.yaml")
    limited.check_rounds(1)
    with pytest.raises(ConsentError, match=r"2 rounds were trained today: consent.yaml allows 2 a day"):
        limited.check_rounds(2)
    Consent().check_rounds(10**6)


def test_what_takes_too_long_ends() -> None:
    with time_limit(0), time_limit(1):
        pass
    started = time.monotonic()
    with pytest.raises(ConsentError, match=r"takes longer than the 0.001 minutes"), time_limit(0.001):
        time.sleep(5)
    assert time.monotonic() - started < 2
