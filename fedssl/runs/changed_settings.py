"""Settings that differ from those a checkpoint was made with: refused, or accepted and noted."""

from __future__ import annotations

import json
from typing import Any

from fedssl.training.checkpoints import ORIGIN

TRAINER = (
    "accelerator",
    "accumulate_grad_batches",
    "devices",
    "gradient_clip_algorithm",
    "gradient_clip_val",
    "limit_train_batches",
    "precision",
)
"""Trainer settings that can change results. The number of epochs cannot: it only sets when the run ends."""

MACHINE = ("trainer.accelerator", "trainer.devices")
"""Settings that change results by rounding only, so that a run may resume on another machine."""

PLACES = ("data.root", "data.download", "data.in_memory", "model.bank.folder")
SHOWN = 8
"""Largest number of settings in an error message."""


def deciding_settings(configuration: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that decide the results of a run, by dotted name."""
    trainer = {key: configuration["trainer"].get(key) for key in TRAINER}
    decisive = {key: configuration[key] for key in ("seed_everything", "model", "data")}
    flat = flatten(decisive | {"trainer": trainer})
    return {name: value for name, value in flat.items() if name not in PLACES}


def notes_of_run(configuration: dict[str, Any], checkpoint: dict[str, Any] | None) -> dict[str, Any]:
    """Return the notes for a run's checkpoints: its settings, and the history of those that changed on a resume.

    Args:
        configuration: Configuration of this run, all defaults included.
        checkpoint: Checkpoint that the run resumes from; ``None`` for a new run.
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
    """Return old and new value of every setting that differs; empty if the command line did not write the checkpoint.

    If a class differs, its name is enough: its arguments are left out.
    """
    then = checkpoint[ORIGIN].get("settings", now)
    found = differences_of_flat([then, now])
    kept = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
    return {name: (found[name][0] or "absent", found[name][1] or "absent") for name in kept}


def check_changes(changed: dict[str, tuple[str, str]], accept: bool) -> None:
    """Refuse changes that could be mistakes.

    Raises:
        ValueError: The user has not accepted such changes.
    """
    serious = [f"{name} {then} then, {now} now" for name, (then, now) in changed.items() if name not in MACHINE]
    if serious and not accept:
        more = f"; and {len(serious) - SHOWN} more" if len(serious) > SHOWN else ""
        raise ValueError(
            f"the checkpoint was made with other settings: {'; '.join(serious[:SHOWN])}{more}; resume with the "
            "configuration of the run folder or, if the change is meant, with --changed_settings=accept"
        )


ABSENT = object()


def flatten(configuration: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a configuration to dotted names as on the command line; the value of a class is its name.

    It may be a file of the user's that the parser has not seen: what has another shape than a setting is left to it.
    """
    flat: dict[str, Any] = {}
    for key, value in configuration.items():
        name = f"{prefix}{key}"
        if not isinstance(value, dict) or not value:
            flat[name] = value
        elif isinstance(path := value.get("class_path"), str):
            flat[name] = path.rpartition(".")[2]
            arguments = value.get("init_args")
            flat |= flatten(arguments, f"{name}.") if isinstance(arguments, dict) else {}
        else:
            flat[name] = "on"  # a group of settings without a class, which another configuration may set to null
            flat |= flatten(value, f"{name}.")
    return flat


def differences_of_flat(flats: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Find the settings in which flat configurations differ, with a text for each configuration.

    Arguments of a class are compared among the configurations with that class; for the others the text is empty.
    """
    found: dict[str, list[str]] = {}
    for key in sorted({key for flat in flats for key in flat}):
        values = [flat.get(key, ABSENT) for flat in flats]
        known = [value for value in values if value is not ABSENT]
        # Keys are sorted, so a class comes before its arguments: if the class differs, absent arguments say nothing.
        below = any(key.startswith(f"{other}.") for other in found)
        if any(value != known[0] for value in known) or (len(known) < len(values) and not below):
            found[key] = ["" if value is ABSENT else _text(value) for value in values]
    return found


def _text(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)
