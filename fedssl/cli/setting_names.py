"""Settings and classes that a configuration accepts, to suggest one to a user who typed something else."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import is_dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any

from pytorch_lightning import LightningDataModule, Trainer
from torch.optim import SGD, AdamW

from fedssl.cli.class_paths import OWN
from fedssl.client.bank import ActivationBank
from fedssl.client.start import StartRule
from fedssl.data.partition import Partitioner
from fedssl.devices import Deadline, DeviceSource
from fedssl.server.aggregation import Aggregation
from fedssl.server.calibration import Calibration
from fedssl.server.selection import Selector
from layerwise import BlockPerturbation, CausalTransformerSpec, EncoderSpec, Scheme
from linear_eval import EvaluatedModule, EvaluationSettings, FinetuneSettings
from ssl_methods import Method, TwoViews
from ssl_methods.alignment import Alignment

PLACES: dict[str, tuple[type, ...]] = {
    "trainer": (Trainer,),
    "model": (EvaluatedModule,),
    "model.encoder": (EncoderSpec, CausalTransformerSpec),
    "model.method": (Method,),
    "model.augment": (TwoViews,),
    "model.optimizer": (AdamW, SGD),
    "model.scheme": (Scheme,),
    "model.selector": (Selector,),
    "model.devices": (DeviceSource,),
    "model.deadline": (Deadline,),
    "model.bank": (ActivationBank,),
    "model.pace": (BlockPerturbation,),
    "model.start": (StartRule,),
    "model.alignment": (Alignment,),
    "model.calibration": (Calibration,),
    "model.aggregation": (Aggregation,),
    "model.server_optimizer": (SGD,),
    "model.evaluation": (EvaluationSettings,),
    "model.finetuning": (FinetuneSettings,),
    "data": (LightningDataModule,),
    "data.partition": (Partitioner,),
}
"""Base classes that a configuration accepts at each place; their subclasses are accepted too."""

OTHER_WORDS = {"learning_rate": "lr", "epochs": "local_epochs"}
REMOVED = {
    "memory_form": "FedHybridSelector's memory term is min(1, available / full_memory)",
    "unbiased": "it was a reconstruction; StragglerMean has the rules contributors and all",
    **dict.fromkeys(
        ("exploration", "exploration_decay", "exploration_floor", "clip_quantile", "cutoff", "bonus", "window"),
        "FedHybridSelector has Oort's defaults as constants (SmartFreezeSelector keeps --model.selector.exploration)",
    ),
}
"""Settings and values of earlier versions, each with what became of it."""

FIRST = 3


def similar_settings(name: str) -> list[str]:
    """Full names of settings whose last word equals or resembles the name, the model's first, then the shortest.

    If only some of the classes allowed at a place have the setting, the suggestion names them.
    """
    names = _names()
    word = OTHER_WORDS.get(name, name)
    words = [word] if word in names else get_close_matches(word, names, n=1)
    found = {path: owners for word in words for path, owners in names[word].items()}
    ranked = sorted(found, key=lambda path: (not path.startswith("model."), len(path)))
    return [f"--{path}{_whose(path, found[path])}" for path in ranked[:FIRST]]


def allowed_classes(key: str) -> list[str]:
    """Names of this project's classes that a setting with this last word accepts by class path, sorted."""
    bases = [base for place, bases in PLACES.items() if place.rpartition(".")[2] == key for base in bases]
    ours = [base for base in bases if base.__module__.partition(".")[0] in OWN]
    families = [base for base in ours if base.__subclasses__() or not is_dataclass(base)]
    return sorted({each.__name__ for base in families for each in _below(base) if not each.__subclasses__()})


def _whose(path: str, owners: set[str]) -> str:
    place = path.rpartition(".")[0]
    every = {each.__name__ for each in _built(place)}
    return f" of {' and '.join(sorted(owners))}" if owners < every and len(owners) <= FIRST else ""


@cache
def _names() -> dict[str, dict[str, set[str]]]:
    """Full names by last word, each with the classes that have the setting."""
    names: dict[str, dict[str, set[str]]] = {}
    for place in PLACES:
        for each in _built(place):
            for name in inspect.signature(each).parameters:
                names.setdefault(name, {}).setdefault(f"{place}.{name}", set()).add(each.__name__)
    return names


def _built(place: str) -> set[Any]:
    return {each for base in PLACES[place] for each in _below(base) if not inspect.isabstract(each)}


def _below(base: Any) -> Iterator[Any]:
    yield base
    for child in base.__subclasses__():
        yield from _below(child)
