"""Result files: Markdown for people, JSON for programs, both with hardware, versions, command and commit."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from fedssl.runs.results import commit, versions
from fedssl.utils.tables import Table


def provenance() -> dict[str, Any]:
    """Where and with what a result was measured."""
    return {
        "command": "python -m benchmarks.run " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions(),
    }


def write_record(folder: Path, name: str, title: str, table: list[dict[str, Any]], data: Any, notes: str) -> None:
    """Writes ``NAME.md`` and ``NAME.json``.

    Args:
        folder: Where.
        name: Stem of both files.
        title: Heading of the Markdown file.
        table: Rows of the table; all have the same keys.
        data: Everything measured, for the JSON file.
        notes: What was run and how to read it.
    """
    columns = list(table[0])
    lines = [
        f"# {title}",
        "",
        notes.strip(),
        "",
        *Table(columns, [[str(row[column]) for column in columns] for row in table]).markdown(),
    ]
    write_page(folder, name, "\n".join(lines), data)


def write_page(folder: Path, name: str, page: str, data: Any) -> None:
    """Writes ``NAME.md`` from a page of Markdown, and ``NAME.json``.

    Args:
        folder: Where.
        name: Stem of both files.
        page: Everything but where it was measured.
        data: Everything measured, for the JSON file.
    """
    origin = provenance()
    folder.mkdir(parents=True, exist_ok=True)
    lines = [page.rstrip(), "", f"- command: `{origin['command']}`", f"- commit: {origin['commit']}"]
    lines += [f"- hardware: {origin['processor']}, {origin['cores']} cores, GPU {origin['gpu']}"]
    lines += ["- versions: " + ", ".join(f"{k} {v}" for k, v in origin["versions"].items()), ""]
    (folder / f"{name}.md").write_text("\n".join(lines))
    (folder / f"{name}.json").write_text(json.dumps({"origin": origin, "data": data}, indent=1) + "\n")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
