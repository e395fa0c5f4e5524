"""Names that a configuration can use: an import policy, and the classes and settings to suggest for a mistyped one.

A stranger's file must reach no code but the classes meant for it. Two rules hold before anything is called. First,
modules are imported only from this project, its dependencies and the user's own folders; jsonargparse consults its
import policy for every path in a value. Second, ``class_path`` must name a class. jsonargparse checks that the class is
a subclass of the setting's type, but where a setting takes a callable, it would call any function with the arguments of
the file.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from difflib import get_close_matches
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from jsonargparse import Namespace, set_parsing_settings
from pytorch_lightning import LightningDataModule, Trainer
from torch.optim import SGD, AdamW

import fedssl.api  # noqa: F401  (a class that is named without its module is found among those imported)
from fedssl.client.bank import ActivationBank
from fedssl.client.start import StartRule
from fedssl.data.partition import Partitioner
from fedssl.devices import Deadline, DeviceSource
from fedssl.protocol.compression import Compression
from fedssl.server.aggregation import Aggregation
from fedssl.server.calibration import Calibration
from fedssl.server.lr_schedule import LRSchedule
from fedssl.server.selection import Selector
from fedssl.server.yogi import Yogi
from layerwise import BlockPerturbation, CausalTransformerSpec, EncoderSpec, Scheme
from linear_eval import EvaluatedModule, EvaluationSettings, FinetuneSettings
from ssl_methods import Method, TwoViews
from ssl_methods.alignment import Alignment

OWN = ("fedssl", "layerwise", "linear_eval", "ssl_methods")
DEPENDENCIES = (
    "jinja2", "lightly", "lightning_fabric", "matplotlib", "networkx", "numpy", "pytorch_lightning", "rich",
    "safetensors", "sklearn", "timm", "torch", "torchvision", "wandb",
)  # fmt: skip
"""Import names of the dependencies in pyproject.toml. jsonargparse is absent: it never lets a value name itself."""

INSTALLED = ("site-packages", "dist-packages")

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
    "model.lr_schedule": (LRSchedule,),
    "model.bank": (ActivationBank,),
    "model.pace": (BlockPerturbation,),
    "model.start": (StartRule,),
    "model.alignment": (Alignment,),
    "model.calibration": (Calibration,),
    "model.aggregation": (Aggregation,),
    "model.compression": (Compression,),
    "model.server_optimizer": (SGD, Yogi),
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


class ForbiddenClassError(ValueError):
    """A configuration names code that it may not reach."""


def restrict_class_paths() -> None:
    """Restrict imports to this project, its dependencies and the modules of the user's own folders."""
    set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=[*OWN, *DEPENDENCIES, *own_modules()],
        # Settings of type Any, such as an encoder's options, would otherwise build every class that they mention.
        instantiate_subclass_spec_in_any=False,
    )


def own_modules() -> list[str]:
    """Top-level modules of the user's own folders, without names that Python resolves elsewhere, such as ``os``."""
    folders = own_folders()
    found = {module.name for module in iter_modules(map(str, folders))}
    found |= {path.parent.name for folder in folders for path in folder.glob("*/*.py")}  # namespace packages
    return sorted(name for name in found if name.isidentifier() and _lies_in(name, folders))


def own_folders() -> list[Path]:
    """List folders of the user's own modules: beside the program, the working folder and those on ``PYTHONPATH``."""
    named = [Path(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    searched = {Path(entry).resolve() for entry in sys.path}
    program = Path(sys.argv[0] or ".").absolute().parent
    folders = dict.fromkeys(folder.resolve() for folder in (program, Path(), *named))
    return [folder for folder in folders if folder in searched and folder.name not in INSTALLED]


def check_class_paths(config: Any) -> None:
    """Check every ``class_path`` of a parsed configuration, whose modules the parser has already imported.

    Raises:
        ForbiddenClassError: A ``class_path`` names a function, which would be called with ``init_args``.
    """
    values = vars(config) if isinstance(config, Namespace) else config
    if isinstance(values, dict):
        path = values.get("class_path")
        named = imported(path) if isinstance(path, str) else None
        if callable(named) and not isinstance(named, type):
            raise ForbiddenClassError(f"class_path {path} is a function: it must name a class")
        for value in values.values():
            check_class_paths(value)
    elif isinstance(values, list | tuple):
        for value in values:
            check_class_paths(value)


def imported(path: str) -> Any:
    """Object at a dotted path; ``None`` if its module has not been imported yet."""
    module, _, name = path.rpartition(".")
    return getattr(sys.modules.get(module), name, None)


def _lies_in(name: str, folders: list[Path]) -> bool:
    """Tell if the top-level module of this name lies in the folders; finds it without importing it."""
    spec = None if name in sys.stdlib_module_names else PathFinder.find_spec(name)
    if spec is None:
        return False
    places = spec.submodule_search_locations or [spec.origin or ""]
    return all(Path(place).resolve().parent in folders for place in places)


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
    """List this project's classes that a setting with this last word accepts by class path, sorted."""
    bases = [base for place, bases in PLACES.items() if place.rpartition(".")[2] == key for base in bases]
    own = [base for base in bases if base.__module__.partition(".")[0] in OWN]
    # A data class that nobody derives from is written as a mapping, without a class path.
    families = [base for base in own if base.__subclasses__() or not is_dataclass(base)]
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
