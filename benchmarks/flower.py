"""One federation twice: in one process, and through our Flower engine in Flower's simulation."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import write_record
from benchmarks.round_times import Measured, measure
from fedssl.utils.files import write_atomically

MIB = 2**20
ROUNDS = 4
NOTES = f"""
`fedssl.yaml` (digits, a ViT of 6 blocks, end-to-end SimCLR), all clients in each of {ROUNDS} rounds, one local epoch of
batches of up to 64 images: `train.py fit` in one process, and the same run through `fedssl.flower` in Flower's
simulation (Ray, an actor for each core, one thread a process). In one process it is run before and after the
simulation; its figures are means of both. A round: median of rounds 2 to {ROUNDS}, checkpoint included. Memory: largest
sum of the proportional set sizes of all processes of the run, evaluation at its end included.
"""


def add_commands(commands: Any) -> None:
    """Adds ``flower``."""
    parser = commands.add_parser("flower", help="one process against Flower's simulation of the same run")
    parser.add_argument("--work", default="runs/benchmark_flower", help="folder of the runs")
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 50, 200])
    parser.add_argument("--cores", type=int, default=2, help="actors of the simulation")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, results: Path) -> None:
    """Measures the sizes that have not been measured yet, and writes the table."""
    data = {clients: _measured(clients, Path(arguments.work), arguments.cores) for clients in arguments.clients}
    rows = [row for clients, found in data.items() for row in _rows(clients, found)]
    write_record(results, "flower", "One process against Flower's simulation", rows, data, NOTES)


def settings(clients: int, folder: Path) -> list[str]:
    """Settings of both runs."""
    return [
        f"--data.clients={clients}",
        f"--model.rounds={ROUNDS}",
        "--model.local_epochs=1",
        "--trainer.check_val_every_n_epoch=1000",
        "--trainer.logger=false",
        "--trainer.callbacks+=benchmarks.round_times.RoundTimes",
        f"--trainer.callbacks.file={folder.absolute() / 'times'}",
    ]


def _measured(clients: int, work: Path, cores: int) -> dict[str, Any]:
    found = work / f"{clients}.json"
    if not found.exists():
        before = _in_process(clients, work / f"{clients}-before")
        simulated = _simulated(clients, work / f"{clients}-flower", cores)
        after = _in_process(clients, work / f"{clients}-after")
        entry = {"before": before.as_dict(), "flower": simulated.as_dict(), "after": after.as_dict()}
        write_atomically(found, lambda path: path.write_text(json.dumps(entry)))
        print(clients, entry, flush=True)
    return json.loads(found.read_text())


def _in_process(clients: int, folder: Path) -> Measured:
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "train.py", "fit", "-c", "fedssl.yaml", f"--run_dir={folder / 'run'}"]
    return measure([*command, *settings(clients, folder)], folder)


def _simulated(clients: int, folder: Path, cores: int) -> Measured:
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "benchmarks.flower", str(folder.absolute()), str(clients), str(cores)]
    return measure(command, folder, SIMULATION | {"XDG_CACHE_HOME": str(folder.absolute() / "cache")})


SIMULATION = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def start_simulation(server: Any, client: Any, clients: int, cores: int) -> None:
    """Runs a ServerApp and a ClientApp in Flower's simulation, one core an actor; on a GPU, equal parts of it too."""
    from flwr.simulation import run_simulation

    share = 1 / cores if torch.cuda.is_available() else 0.0
    backend = {
        "client_resources": {"num_cpus": 1, "num_gpus": share},
        "init_args": {"num_cpus": cores, "log_to_driver": False},
    }
    run_simulation(server, client, clients, backend_config=backend)


def main(folder: Path, clients: int, cores: int) -> None:
    """The simulated run, in a process of its own."""
    from flwr.app import Context
    from flwr.serverapp import Grid, ServerApp

    from fedssl.flower import client_app, server_app

    server = ServerApp()

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        arguments = " ".join(f"'{each}'" for each in settings(clients, folder))
        config = {"config": "fedssl.yaml", "arguments": arguments, "run-dir": str(folder / "run"), "resume": ""}
        rounds = {"min-clients": clients, "join-timeout": 3600.0, "round-timeout": 0.0}
        context.run_config |= config | rounds | {"enough-replies": 0, "min-replies": 1}
        server_app.app(grid=grid, context=context)

    start_simulation(server, client_app.app, clients, cores)


def _rows(clients: int, found: dict[str, Any]) -> Iterator[dict[str, str]]:
    def mean(key: str) -> Any:
        return (found["before"][key] + found["after"][key]) / 2

    ours = Measured(
        mean("startup"), mean("first"), found["before"]["later"] + found["after"]["later"], mean("peak_bytes")
    )
    simulated = Measured(**found["flower"])
    for name, each in {"one process": ours, "Flower's simulation": simulated}.items():
        yield {
            "clients": str(clients),
            "engine": name,
            "start s": f"{each.startup:.1f}",
            "first round s": f"{each.first:.2f}",
            "later rounds s": f"{each.seconds:.2f}",
            "ratio": f"{each.seconds / ours.seconds:.1f}",
            "peak MiB": f"{each.peak_bytes / MIB:,.0f}",
        }


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
