"""Full names of all settings, for those who know the last word only."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from typing import Any

from pytorch_lightning import LightningDataModule, Trainer
from torch.optim import SGD, AdamW

from fedssl.aggregation import Aggregation
from fedssl.alignment import Alignment
from fedssl.bank import ActivationBank
from fedssl.calibration import Calibration
from fedssl.devices import Deadline, DeviceSource
from fedssl.partition import Partitioner
from fedssl.selection import Selector
from fedssl.start import StartRule
from layerwise import BlockPerturbation, CausalTransformerSpec, EncoderSpec, Scheme
from linear_eval import EvaluatedModule, EvaluationSettings, FinetuneSettings
from ssl_methods import Method, TwoViews

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
"""Which classes a configuration can have where; those below them too."""

FIRST = 3


def similar_settings(name: str) -> list[str]:
    """Full names of the settings whose last word is the name, or nearly so; the shortest first."""
    names = _names()
    words = [name] if name in names else get_close_matches(name, names, n=1)
    return sorted((f"--{path}" for word in words for path in names[word]), key=len)[:FIRST]


@cache
def _names() -> dict[str, set[str]]:
    names: dict[str, set[str]] = {}
    for place, bases in PLACES.items():
        for name in {name for base in bases for each in _below(base) for name in _parameters(each)}:
            names.setdefault(name, set()).add(f"{place}.{name}")
    return names


def _below(base: Any) -> Iterator[Any]:
    yield base
    for child in base.__subclasses__():
        yield from _below(child)


def _parameters(each: Any) -> Iterator[str]:
    """What can be set in a class; what the run itself hands over has no default of a plain kind there."""
    for parameter in inspect.signature(each).parameters.values():
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD or parameter.kind is parameter.KEYWORD_ONLY:
            yield parameter.name
