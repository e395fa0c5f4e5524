"""Delivery of a finished run's report to its folder and to Weights & Biases."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import wandb
from PIL import Image
from pytorch_lightning.loggers import Logger, WandbLogger

from fedssl.data.clients import ClientData
from fedssl.data.disclosure import may_show_images
from fedssl.data.images import ImageData
from fedssl.runs.report import summary
from fedssl.runs.report.page import Picture, Section, build_page
from fedssl.runs.report.record import DETAILS, RunRecord, write_details
from fedssl.runs.report.sections import run_sections
from fedssl.runs.report.summary import stage_sums
from fedssl.runs.report.theme import as_png
from fedssl.training.endings import shortfall
from fedssl.training.pretraining import Pretraining
from fedssl.utils.files import write_text
from fedssl.utils.tables import Table


def deliver_report(
    module: Pretraining,
    data: ImageData | ClientData,
    folder: Path,
    loggers: Sequence[Logger],
    show_images: bool | None = None,
) -> Path:
    """Write ``details.npz`` and ``report.html``, and log the same figures and tables to W&B.

    Args:
        module: Trained and evaluated module.
        data: Images or texts of the run.
        folder: Run folder, with its ``results.json``.
        loggers: Loggers of the run.
        show_images: Include images of the data; ``None`` includes those of public data sets only.

    Returns:
        Path of the page.
    """
    shown = may_show_images(data) if show_images is None else show_images
    write_details(module, data, folder / DETAILS, pictures=shown)
    record = RunRecord.read(folder)
    sections = write_run_report(record)
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            for stage, sums in enumerate(stage_sums(record)):
                logger.experiment.log({"stage": stage} | {f"stage/{key}": value for key, value in sums.items()})
            logger.experiment.log(media(sections))
    return folder / REPORT


def media(sections: Sequence[Section]) -> dict[str, Any]:
    """Pictures and tables for W&B, by section and title."""
    logged: dict[str, Any] = {}
    for section in sections:
        for block in section.blocks:
            key = f"report/{section.title}/{block.title}"
            if isinstance(block, Picture):
                logged[key] = wandb.Image(Image.open(io.BytesIO(as_png(block.figure))), caption=block.caption)
            elif isinstance(block, Table):
                logged[key] = wandb.Table(columns=list(block.header), data=list(map(list, block.rows)))
    return logged


REPORT = "report.html"


def write_run_report(record: RunRecord) -> Sequence[Section]:
    """Draw ``report.html`` from the other files of a run folder.

    Returns:
        Sections of the page.
    """
    results, sections = record.results, run_sections(record)
    page = build_page(
        title=record.name[0].upper() + record.name[1:] + (" (unfinished)" if shortfall(results) else ""),
        subtitle=_subtitle(record),
        summary=summary.sentence(record),
        facts=summary.facts(record),
        sections=sections,
        footer=f"Run {record.folder.resolve().name}, fedssl {results['versions'].get('fedssl', '')}, "
        f"commit {results['commit'] or 'unknown'}, seed {results['seed']}.",
    )
    write_text(record.folder / REPORT, page)
    return sections


def _subtitle(record: RunRecord) -> str:
    results = record.results
    parts = [results["encoder"], f"on {record.config['data']['init_args']['dataset']}"]
    if record.federated:
        parts.append(f"{results['clients']} clients, {results['clients_per_round']} a round")
        done = str(results["rounds"]) + (f" of {results['rounds_planned']}" if shortfall(results) else "")
        parts.append(f"{done} rounds of {results['local_epochs']} local epochs")
    return " · ".join([*parts, f"seed {results['seed']}"])
