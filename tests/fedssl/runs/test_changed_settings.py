"""Resuming with other settings: refused, or accepted and noted."""

import copy
from typing import Any

import pytest

from fedssl.runs.changed_settings import changed_settings, check_changes, deciding_settings, notes_of_run

CONFIGURATION: dict[str, Any] = {
    "seed_everything": 1,
    "trainer": {"precision": None, "devices": 1, "logger": None, "max_epochs": 5},
    "model": {
        "class_path": "fedssl.FederatedSSL",
        "init_args": {
            "dropout": 0.0,
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}},
            "aggregation": {"class_path": "fedssl.PrivateMean", "init_args": {"clip": 1.0, "noise_multiplier": 1.0}},
        },
    },
    "data": {"class_path": "fedssl.FederatedData", "init_args": {"root": "data", "clients": 3}},
}


def altered(place: str, value: Any) -> dict[str, Any]:
    """The configuration with another value at a place such as ``model.init_args.dropout``."""
    configuration = copy.deepcopy(CONFIGURATION)
    *folders, key = place.split(".")
    below = configuration
    for folder in folders:
        below = below[folder]
    below[key] = value
    return configuration


def checkpoint(configuration: dict[str, Any] = CONFIGURATION, epoch: int = 2, **more: Any) -> dict[str, Any]:
    return {"fedssl": notes_of_run(configuration, None) | more, "epoch": epoch, "server": {}}


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("model.init_args.dropout", 0.5, r"model\.dropout 0\.0 then, 0\.5 now"),
        ("model.init_args.optimizer.init_args.lr", 0.2, r"model\.optimizer\.lr 0\.1 then, 0\.2 now"),
        ("model.init_args.optimizer", {"class_path": "Adam", "init_args": {"lr": 0.1}}, "optimizer SGD then, Adam now"),
        ("model.init_args.bits", 4, r"model\.bits absent then, 4 now"),
        ("data.init_args.clients", 4, r"data\.clients 3 then, 4 now"),
        ("trainer.precision", "bf16-mixed", r"trainer\.precision none then, bf16-mixed now"),
        ("seed_everything", 2, "seed_everything 1 then, 2 now"),
    ],
)
def test_what_changes_results_is_refused_unless_accepted(place: str, value: Any, message: str) -> None:
    changed = changed_settings(deciding_settings(altered(place, value)), checkpoint())
    with pytest.raises(ValueError, match=f"made with other settings: .*{message}.*--changed_settings=accept"):
        check_changes(changed, accept=False)
    check_changes(changed, accept=True)


@pytest.mark.parametrize(
    ("place", "value"),
    [("data.init_args.root", "elsewhere"), ("trainer.logger", False), ("trainer.max_epochs", 9)],
)
def test_what_cannot_change_results_does_not_count(place: str, value: Any) -> None:
    assert not changed_settings(deciding_settings(altered(place, value)), checkpoint())


def test_another_machine_is_said_and_not_refused() -> None:
    changed = changed_settings(deciding_settings(altered("trainer.devices", 2)), checkpoint())
    assert changed == {"trainer.devices": ("1", "2")}
    check_changes(changed, accept=False)


def test_of_many_changes_some_are_shown() -> None:
    changed = {f"model.setting_{number}": ("1", "2") for number in range(11)}
    with pytest.raises(ValueError, match=r"model\.setting_7 1 then, 2 now; and 3 more; resume with"):
        check_changes(changed, accept=False)


def test_a_checkpoint_that_the_command_line_did_not_write_is_not_compared() -> None:
    assert not changed_settings(deciding_settings(CONFIGURATION), {"fedssl": {}, "epoch": 0})


def test_changes_are_noted_with_those_before() -> None:
    once = notes_of_run(altered("model.init_args.dropout", 0.5), checkpoint())
    assert once["changes"] == {"model.dropout": "0.0, after 3 rounds 0.5"}
    again = checkpoint(altered("model.init_args.dropout", 0.5), epoch=6, changes=once["changes"])
    assert notes_of_run(altered("model.init_args.dropout", 0.5), again)["changes"] == once["changes"]
    back = notes_of_run(CONFIGURATION, again)["changes"]
    assert back == {"model.dropout": "0.0, after 3 rounds 0.5, after 7 rounds 0.0"}
