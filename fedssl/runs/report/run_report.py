"""Report of a run: its sections, its page, and what Weights & Biases gets of it."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import wandb
import yaml
from PIL import Image
from pytorch_lightning.loggers import Logger, WandbLogger

from fedssl.data.clients import ClientData
from fedssl.data.disclosure import may_show_images, without_paths
from fedssl.data.images import ImageData
from fedssl.runs.baselines import caution
from fedssl.runs.client_results import client_table
from fedssl.runs.report import figures, representation, summary
from fedssl.runs.report.figures import Line
from fedssl.runs.report.page import REPORT, Block, Listing, Picture, Section, build_page
from fedssl.runs.report.record import DETAILS, ClientDetails, Curve, RunRecord, write_details
from fedssl.runs.report.theme import as_png
from fedssl.runs.results import cost_table
from fedssl.training.endings import shortfall
from fedssl.training.pretraining import Pretraining
from fedssl.utils.files import write_text
from fedssl.utils.tables import Table
from fedssl.utils.units import MIB
from linear_eval import EvaluationDetails

MOST_CLASSES = 100
"""Largest number of classes for which a figure has room."""
LOSSES = {"client/loss": "clients", "server/calibration_loss": "server's calibration", "train/loss": "training"}
ACCURACY, BITS = "eval/knn_top1", "eval/bits_per_character"
MEMORY = "Most bytes kept for backward in a local step of any client of the round."
COMPUTATION = "Multiply-accumulates of local training, forward and backward; mean of the round's clients."
TRAFFIC = "Mean of each round's clients, added up. Frozen layers are received once, after their stage."
COST = "What devices paid, counted while they trained: tensors that travelled, operations that ran."
DISTANCE = "Between the weights of two clients after the round: root mean square over all pairs of its clients."
PER_CLASS = "Share of each class's images that the probe gets right, worst class first."
CONFUSION = "Percent of each true class (row) that the probe takes for each class (column), after training."
MAP = "Up to 1,000 test images on the first two principal components of the features; labels only colour them."
NEIGHBOURS = "Framed by whether the class is that of the test image; another class is named."
LAYERS = "Linear CKA of layers' mean outputs on test images: 1 is equal up to rotation and scale, 0 unrelated."


def deliver_report(
    module: Pretraining, data: ImageData | ClientData, folder: Path, loggers: Sequence[Logger], show_images: bool | None
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
            for stage, sums in enumerate(summary.stage_sums(record)):
                logger.experiment.log({"stage": stage} | {f"stage/{key}": value for key, value in sums.items()})
            logger.experiment.log(media(sections))
    return folder / REPORT


def media(sections: Sequence[Section]) -> dict[str, Any]:
    """Collect pictures and tables for W&B, by section and title."""
    logged: dict[str, Any] = {}
    for section in sections:
        for block in section.blocks:
            key = f"report/{section.title}/{block.title}"
            if isinstance(block, Picture):
                logged[key] = wandb.Image(Image.open(io.BytesIO(as_png(block.figure))), caption=block.caption)
            elif isinstance(block, Table):
                logged[key] = wandb.Table(columns=list(block.header), data=list(map(list, block.rows)))
    return logged


def write_run_report(record: RunRecord) -> Sequence[Section]:
    """Draw ``report.html`` from the other files of a run folder.

    Returns:
        Sections of the page.
    """
    results, sections = record.results, run_sections(record)
    title = record.name[0].upper() + record.name[1:] + (" (unfinished)" if shortfall(results) else "")
    code = f"fedssl {results['versions'].get('fedssl', '')}, commit {results['commit'] or 'unknown'}"
    footer = f"Run {record.folder.resolve().name}, {code}, seed {results['seed']}."
    sentence, facts, subtitle = summary.sentence(record), summary.facts(record), _subtitle(record)
    doubts = caution(results)
    page = build_page(title, sentence, sections, caution=doubts, facts=facts, subtitle=subtitle, footer=footer)
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


def run_sections(record: RunRecord) -> list[Section]:
    """Build all sections; those whose data the run did not record have no blocks."""
    configuration = yaml.safe_dump(without_paths(record.config), sort_keys=False)
    measured = [] if "not_evaluated" in record.results else [summary.quality(record.results)]
    return [
        Section("Quality", [*measured, *_training(record)]),
        Section("Cost", [*_cost(record)] if record.federated else [], COST),
        Section("Clients", [*_by_client(record), *(_clients(record, record.clients) if record.clients else [])]),
        *(_evaluation(record, record.evaluation) if record.evaluation else []),
        Section("Origin", [summary.origin_table(record), Listing("config.yaml", configuration)]),
    ]


def _training(record: RunRecord) -> Iterator[Block]:
    """Draw accuracy and loss during training."""
    several, over = len(record.stages()) > 1, f"over the {record.unit}s"
    queries = "Online measure, on training images held out as queries." + " Vertical lines end stages." * several
    weighted = "Of training, weighted by images." + " Losses of different stages need not compare." * several
    accuracy, bits = [Line(record.curve(ACCURACY))], [Line(record.curve(BITS))]
    losses = [Line(record.curve(key), name) for key, name in LOSSES.items()]
    yield from _over_rounds(record, f"Accuracy {over}", "kNN top-1 %", accuracy, queries, from_zero=False)
    text = "Online measure, on held-out text."
    yield from _over_rounds(record, f"Held-out text {over}", "bits a character", bits, text, from_zero=False)
    yield from _over_rounds(record, f"Loss {over}", "loss", losses, weighted, from_zero=False)


def _over_rounds(
    record: RunRecord, title: str, label: str, drawn: Sequence[Line], caption: str, *, from_zero: bool = True
) -> Iterator[Block]:
    """Draw the lines that have values; nothing if none has."""
    if drawn := [line for line in drawn if len(line.curve[0])]:
        yield Picture(title, figures.lines(drawn, record.unit, label, record.stages(), from_zero), caption)


def _cost(record: RunRecord) -> Iterator[Block]:
    """Draw memory, computation and traffic over the rounds, after figure 5 of LW-FedSSL (arXiv 2401.11647)."""
    rounds, peaks = record.curve("cost/peak_activation_bytes")
    memory = Line((rounds[peaks > 0], peaks[peaks > 0] / MIB), steps=True)
    macs = Line(figures.mean_of_participants(record, "cost/macs", scale=1e9), steps=True)
    both = (figures.mean_of_participants(record, f"cost/{way}_bytes", scale=MIB) for way in ("down", "up"))
    down, up = map(figures.so_far, both)
    traffic = [Line(down, "received"), Line(up, "sent")]
    yield from _over_rounds(record, "Memory", "activations of a step (MiB)", [memory], MEMORY)
    yield from _over_rounds(record, "Computation", "GMACs a round", [macs], COMPUTATION)
    yield from _over_rounds(record, "Traffic", "MiB since the run began", traffic, TRAFFIC)
    yield from accuracy_over_cost(record, (down[0], down[1] + up[1]))
    yield cost_table(record.results, "A device over the whole run")
    yield summary.stage_table(record)


def accuracy_over_cost(record: RunRecord, traffic: Curve) -> Iterator[Block]:
    """Draw kNN accuracy over the virtual clock or, if no device has a speed, over traffic."""
    paid, label, title = traffic, "MiB received and sent by a client", "Accuracy over traffic"
    clock = record.curve("time/simulated_seconds")
    if clock[1].any():
        paid, label, title = clock, "seconds on the virtual clock", "Accuracy over time"
    curve = figures.against(paid, record.curve(ACCURACY))
    if len(curve[0]):
        figure = figures.lines([Line(curve)], label, "kNN top-1 %", from_zero=False)
        yield Picture(title, figure, "The online measure over what it took to get there.")


def _by_client(record: RunRecord) -> Iterator[Block]:
    """Tabulate what the encoder is worth to each client, if that was measured."""
    if by_client := record.results.get("by_client"):
        yield client_table(by_client)


def _clients(record: RunRecord, clients: ClientDetails) -> Iterator[Block]:
    """Draw the data of the clients, and their work."""
    if 0 < clients.images.shape[1] <= MOST_CLASSES:
        shown = figures.shown_clients(len(clients.images))
        most = clients.images[shown].max()
        held = f"Training images of each class that each client holds; the darkest cell has {most:,}."
        if len(shown) < len(clients.images):
            held += f" Shown: {len(shown)} of the {len(clients.images):,} clients, evenly spaced."
        yield Picture("Who holds what", figures.distribution(clients), held)
    given = "Clients of each round: those whose result counted, and why others gave nothing."
    yield Picture("Participation", figures.participation(record), given)
    apart = [Line(record.curve("client/distance"))]
    yield from _over_rounds(record, "Distance between clients", "L2 distance", apart, DISTANCE)
    rounds, macs = figures.each_client(clients.rounds, "rounds"), figures.each_client(clients.macs / 1e9, "GMACs")
    yield Picture("Rounds of each client", rounds, "Rounds in which each client's result counted.")
    yield Picture("Computation of each client", macs, "Of each client's local training over the whole run.")


def _evaluation(record: RunRecord, details: EvaluationDetails) -> list[Section]:
    """Draw what each encoder makes of the test images, the one that training started from first."""
    accuracy = Picture("Accuracy of each class", representation.per_class_accuracy(details), PER_CLASS)
    confusion = Picture("Confusion", representation.confusion(details), CONFUSION)
    maps, neighbours, layers = [], [], []
    for name, when in record.encoders.items():
        if name not in details.encoders:
            continue
        maps.append(Picture(f"Map {when}", representation.flat_map(details, name), MAP))
        if details.has_pictures:
            neighbours.append(Picture(f"Nearest images {when}", representation.neighbours(details, name), NEIGHBOURS))
        if len(details.layers):
            figure = representation.similarity(details, name, f"layer {when}")
            layers.append(Picture(f"Trained layers against layers {when}", figure, LAYERS))
    return [
        Section("Classes", [accuracy, confusion], "The linear probe on the test images."),
        Section("Representation", maps),
        Section("Neighbours", neighbours),
        Section("Layers", layers),
    ]
