"""Brings the report of a run that has just ended to its folder and to Weights & Biases."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import wandb
from PIL import Image
from pytorch_lightning.loggers import Logger, WandbLogger

from fedssl.client_data import ClientData
from fedssl.data import ImageData
from fedssl.disclosure import may_show_images
from fedssl.pretraining import Pretraining
from fedssl.report.details_file import DETAILS, write_details
from fedssl.report.page import Picture, Section, Table
from fedssl.report.record import RunRecord
from fedssl.report.run_report import REPORT, write_run_report
from fedssl.report.summary import stage_sums
from fedssl.report.theme import as_png


def deliver_report(
    module: Pretraining,
    data: ImageData | ClientData,
    folder: Path,
    loggers: Sequence[Logger],
    show_images: bool | None = None,
) -> Path:
    """Writes ``details.npz`` and ``report.html``, and logs the same figures and tables to W&B.

    Args:
        module: Trained and evaluated.
        data: Its images or texts.
        folder: Of the run; has its ``results.json`` already.
        loggers: Of the run.
        show_images: Whether images of the data stand in these; ``None``: those of public data sets.

    Returns:
        The page.
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
            if isinstance(block, Picture):
                picture = Image.open(io.BytesIO(as_png(block.figure)))
                logged[f"report/{section.title}/{block.title}"] = wandb.Image(picture, caption=block.caption)
            elif isinstance(block, Table):
                rows = [list(row) for row in block.rows]
                logged[f"report/{section.title}/{block.title}"] = wandb.Table(columns=list(block.header), data=rows)
    return logged
