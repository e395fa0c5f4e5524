"""Settings that differ from those a checkpoint was made with: refused, or accepted and noted."""

from __future__ import annotations

from typing import Any

from fedssl.checkpoints import ORIGIN
from fedssl.setting_differences import differences_of_flat, flatten

TRAINER = (
    "accelerator",
    "accumulate_grad_batches",
    "devices",
    "gradient_clip_algorithm",
    "gradient_clip_val",
    "limit_train_batches",
    "precision",
)
"""Settings of the trainer that can change results; the number of epochs only says when they are looked at."""

MACHINE = ("trainer.accelerator", "trainer.devices")
"""They change results by rounding only."""

PLACES = ("data.root", "data.download", "data.in_memory", "model.bank.folder")
SHOWN = 8
"""Settings in an error message."""


def deciding_settings(configuration: dict[str, Any]) -> dict[str, Any]:
    """What decides the results of a run, by dotted name."""
    trainer = {key: configuration["trainer"].get(key) for key in TRAINER}
    decisive = {key: configuration[key] for key in ("seed_everything", "model", "data")}
    flat = flatten(decisive | {"trainer": trainer})
    return {name: value for name, value in flat.items() if name not in PLACES}


def notes_of_run(configuration: dict[str, Any], checkpoint: dict[str, Any] | None) -> dict[str, Any]:
    """What a run's checkpoints say of its settings, and of those that changed when it was resumed.

    Args:
        configuration: Of this run, all defaults included.
        checkpoint: What it goes on from, if anything.
    """
    made = checkpoint[ORIGIN] if checkpoint else {}
    notes = {"settings": deciding_settings(configuration), "changes": dict(made.get("changes", {}))}
    if checkpoint:
        unit = "rounds" if "server" in checkpoint else "epochs"
        for name, (then, now) in changed_settings(notes["settings"], checkpoint).items():
            before = notes["changes"].get(name, then)
            notes["changes"][name] = f"{before}, after {checkpoint['epoch'] + 1} {unit} {now}"
    return notes


def changed_settings(now: dict[str, Any], checkpoint: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Value then and now of every setting that differs; none if the command line did not write the checkpoint.

    Of another class the name is enough: its arguments are left out.
    """
    then = checkpoint[ORIGIN].get("settings", now)
    found = differences_of_flat([then, now])
    kept = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
    return {name: (found[name][0] or "absent", found[name][1] or "absent") for name in kept}


def check_changes(changed: dict[str, tuple[str, str]], accept: bool) -> None:
    """Refuses changes that could be mistakes.

    Raises:
        ValueError: There are some and they were not accepted.
    """
    serious = [f"{name} {then} then, {now} now" for name, (then, now) in changed.items() if name not in MACHINE]
    if serious and not accept:
        more = f"; and {len(serious) - SHOWN} more" if len(serious) > SHOWN else ""
        raise ValueError(
            f"the checkpoint was made with other settings: {'; '.join(serious[:SHOWN])}{more}; resume with the "
            "configuration of the run folder or, if the change is meant, with --changed_settings=accept"
        )
