"""Federated self-supervised representation learning for devices with little memory."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedssl.api import *  # noqa: F403

    __version__: str
else:

    def __getattr__(name: str) -> Any:
        """Import the classes when one of them is asked for: torch and Lightning take seconds to load."""
        if name == "__version__":
            return _version()
        if name == "__all__" or not name.startswith("_"):
            api = import_module("fedssl.api")
            if name == "__all__" or name in api.__all__:
                return getattr(api, name)
        raise AttributeError(f"module 'fedssl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "__version__", *import_module("fedssl.api").__all__]


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # a tenth of a second

    try:
        return version("fedssl")
    except PackageNotFoundError:  # a checkout that was not installed
        return "unknown"
