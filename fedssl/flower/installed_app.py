"""ClientApp process that runs the installed package, whatever code the SuperLink sends: ``python -m`` this module.

Flower starts the command ``flwr-clientapp`` for each message, unpacks the app of whoever submitted the run, and imports
it. Started in its place, this module neither unpacks nor imports it: what runs is what the operator installed.
"""

from __future__ import annotations

from pathlib import Path

from flwr.clientapp import ClientApp
from flwr.supernode.cli.flwr_clientapp import flwr_clientapp
from flwr.supernode.runtime import run_clientapp as flower


def load(*_: str) -> ClientApp:
    """Import the installed app, once Flower's heartbeat runs: torch takes longer to import than a silent task lives."""
    from fedssl.flower.client_app import app

    return app


REPLACED = {
    "install_from_fab": lambda *_, **__: Path(),
    "get_project_dir": lambda *_, **__: Path(),
    "get_load_client_app_fn": lambda *_, **__: load,
}
"""Functions by which flwr 1.41 brings the sent app into the process."""


def main() -> None:
    """Serve one message.

    Raises:
        RuntimeError: Flower is another version, in which the sent code might be loaded by other means.
    """
    missing = [name for name in REPLACED if not hasattr(flower, name)]
    if missing:
        raise RuntimeError(f"flwr has no {', '.join(missing)}: fedssl.flower.installed_app knows flwr 1.41 only")
    vars(flower).update(REPLACED)
    flwr_clientapp()


if __name__ == "__main__":
    main()
