"""Runs on disks that are too small, or fill up while they train."""

from __future__ import annotations

import argparse
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.record import write_record
from benchmarks.reliability.tiny_run import RUN, start
from fedssl.training.checkpoints import checkpoints_of, read_checkpoint

NOTES = """
Each run writes to a tmpfs of the given size of its own (root may mount it). "Filled" is a disk that another program
fills up after the second checkpoint. Afterwards every checkpoint there is read, the disk is given space, and the run
is resumed, or begun again if there was no checkpoint.
"""
SIZES = (60, 180, 400)
ROOM = 64 * 1024
NOISE = ("leaked", "nanobind", "skipped remainder", "FEDSSL_DEBUG")


def add_commands(commands: Any) -> None:
    """Adds ``reliability_disks``."""
    commands.add_parser("reliability_disks", help="small and full disks (as root)").set_defaults(run=run)


def run(arguments: argparse.Namespace, results: Path) -> None:
    """Tries every size and writes the table."""
    with TemporaryDirectory() as scratch:
        table = [_trial(Path(scratch), size, []) for size in SIZES]
        table += [_trial(Path(scratch), ROOM, more, fill=True) for more in ([], ["--trainer.logger=true"])]
    write_record(results, "reliability_disks", "Small and full disks", table, table, NOTES)


def _trial(disk: Path, kibibytes: int, settings: list[str], fill: bool = False) -> dict[str, Any]:
    arguments = [*RUN, "--model.rounds=20", *settings, f"--run_dir={disk / 'run'}"]
    checkpoints = disk / "run" / "checkpoints"
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", disk], check=True)
    try:
        process = start(arguments)
        if fill:
            _fill(disk, checkpoints / "00001.ckpt", process)
        said = process.communicate()[0]
        loaded = [bool(read_checkpoint(path)) for path in checkpoints_of(checkpoints)]
        (disk / "filling").unlink(missing_ok=True)
        subprocess.run(["mount", "-o", f"remount,size={ROOM}k", disk], check=True)
        if not loaded:
            (disk / "run" / "config.yaml").unlink(missing_ok=True)
        again = start([*arguments, *(["--ckpt_path=last"] if loaded else [])])
        again.communicate()
        return {
            "disk": "filled" if fill else f"{kibibytes} KiB",
            "exit status": process.returncode,
            "says": _last_words(said).replace(f"{disk}/", ""),
            "tracebacks": said.count("Traceback"),
            "checkpoints, all of which load": len(loaded),
            "ends, given space": (disk / "run" / "results.json").exists() and again.returncode == 0,
        }
    finally:
        subprocess.run(["umount", disk], check=True)


def _fill(disk: Path, after: Path, process: subprocess.Popen[str]) -> None:
    while process.poll() is None and not after.exists():
        time.sleep(0.001)
    with (disk / "filling").open("wb", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                size = size if file.write(bytes(size)) == size else size // 2
            except OSError:
                size //= 2


def _last_words(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip() and not any(noise in line for noise in NOISE)]
    told = [line for line in lines if line.startswith(("error", "no report"))]
    return (told or lines)[-1].replace("|", "/")
