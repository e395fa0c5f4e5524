"""Import policy of configurations: a stranger's file must reach no code but the classes meant for it.

Two rules hold before anything is called. First, modules are imported only from this project, its dependencies and the
user's own folders; jsonargparse consults its import policy for every path in a value. Second, ``class_path`` must name
a class. jsonargparse checks that the class is a subclass of the setting's type, but where a setting takes a callable,
it would call any function with the arguments of the file.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from jsonargparse import Namespace, set_parsing_settings

OWN = ("fedssl", "layerwise", "linear_eval", "ssl_methods")
DEPENDENCIES = (
    "jinja2", "lightly", "lightning_fabric", "matplotlib", "networkx", "numpy", "pytorch_lightning", "rich",
    "safetensors", "sklearn", "timm", "torch", "torchvision", "wandb",
)  # fmt: skip
"""Import names of the dependencies in pyproject.toml. jsonargparse is absent: it never lets a value name itself."""

INSTALLED = ("site-packages", "dist-packages")


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
    """Folders of the user's own modules: beside the program, the working folder and those on ``PYTHONPATH``."""
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
        if isinstance(path, str) and "." in path:
            _check_class(path)
        for value in values.values():
            check_class_paths(value)
    elif isinstance(values, list | tuple):
        for value in values:
            check_class_paths(value)


def imported(path: str) -> Any:
    """Object at a dotted path; ``None`` if its module has not been imported yet."""
    module, _, name = path.rpartition(".")
    return getattr(sys.modules.get(module), name, None)


def _check_class(path: str) -> None:
    named = imported(path)
    if callable(named) and not isinstance(named, type):
        raise ForbiddenClassError(f"class_path {path} is a function: it must name a class")


def _lies_in(name: str, folders: list[Path]) -> bool:
    """Tell if the top-level module of this name lies in the folders; finds it without importing it."""
    spec = None if name in sys.stdlib_module_names else PathFinder.find_spec(name)
    if spec is None:
        return False
    places = spec.submodule_search_locations or [spec.origin or ""]
    return all(Path(place).resolve().parent in folders for place in places)
