"""Sections of a run's report: their figures and tables."""

from __future__ import annotations

from collections.abc import Sequence

from fedssl.runs.report import client_figures, curves, representation, summary
from fedssl.runs.report.curves import Line
from fedssl.runs.report.page import Block, Listing, Picture, Section
from fedssl.runs.report.record import Curve, RunRecord
from fedssl.runs.result_tables import cost_table
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
PER_CLASS = "Share of each class's images that the probe gets right, worst class first."
CONFUSION = "Percent of each true class (row) that the probe takes for each class (column), after training."
MAP = "Up to 1,000 test images on the first two principal components of the features; labels only colour them."
NEIGHBOURS = "Framed by whether the class is that of the test image; another class is named."
LAYERS = "Linear CKA of layers' mean outputs on test images: 1 is equal up to rotation and scale, 0 unrelated."


def run_sections(record: RunRecord) -> list[Section]:
    """Build all sections; those whose data the run did not record have no blocks."""
    return [
        Section("Quality", [summary.quality(record.results), *_training(record)]),
        Section("Cost", _cost(record) if record.federated else [], COST),
        Section("Clients", _clients(record)),
        *(_evaluation(record, record.evaluation) if record.evaluation else []),
        Section("Origin", [summary.origin_table(record), Listing("config.yaml", record.shown_configuration)]),
    ]


def _training(record: RunRecord) -> list[Block]:
    """Pictures of accuracy and loss during training."""
    several = len(record.stages()) > 1
    queries = "Online measure, on training images held out as queries." + " Vertical lines end stages." * several
    weighted = "Of training, weighted by images." + " Losses of different stages need not compare." * several
    losses = [Line(record.curve(key), name) for key, name in LOSSES.items()]
    panels = (
        ("Accuracy", "kNN top-1 %", [Line(record.curve(ACCURACY))], queries),
        ("Held-out text", "bits a character", [Line(record.curve(BITS))], "Online measure, on held-out text."),
        ("Loss", "loss", losses, weighted),
    )
    return [
        block
        for title, label, drawn, caption in panels
        for block in _over_rounds(record, f"{title} over the {record.unit}s", label, drawn, caption, from_zero=False)
    ]


def _over_rounds(
    record: RunRecord, title: str, label: str, drawn: Sequence[Line], caption: str, *, from_zero: bool = True
) -> list[Block]:
    """Picture of the lines that have values; nothing if none has."""
    drawn = [line for line in drawn if len(line.curve[0])]
    figure = curves.lines(drawn, record.unit, label, record.stages(), from_zero) if drawn else None
    return [Picture(title, figure, caption)] if figure else []


def _cost(record: RunRecord) -> list[Block]:
    """Pictures of memory, computation and traffic over the rounds, after figure 5 of LW-FedSSL (arXiv 2401.11647)."""
    rounds, peaks = record.curve("cost/peak_activation_bytes")
    memory = Line((rounds[peaks > 0], peaks[peaks > 0] / MIB), steps=True)
    macs = Line(curves.mean_of_participants(record, "cost/macs", scale=1e9), steps=True)
    down, up = (
        curves.so_far(curves.mean_of_participants(record, f"cost/{way}_bytes", scale=MIB)) for way in ("down", "up")
    )
    return [
        *_over_rounds(record, "Memory", "activations of a step (MiB)", [memory], MEMORY),
        *_over_rounds(record, "Computation", "GMACs a round", [macs], COMPUTATION),
        *_over_rounds(
            record, "Traffic", "MiB since the run began", [Line(down, "received"), Line(up, "sent")], TRAFFIC
        ),
        *accuracy_over_cost(record, (down[0], down[1] + up[1])),
        cost_table(record.results, "A device over the whole run"),
        summary.stage_table(record),
    ]


def accuracy_over_cost(record: RunRecord, traffic: Curve) -> list[Block]:
    """Picture of kNN accuracy over the virtual clock or, if no device has a speed, over traffic."""
    paid, label, title = traffic, "MiB received and sent by a client", "Accuracy over traffic"
    clock = record.curve("time/simulated_seconds")
    if clock[1].any():
        paid, label, title = clock, "seconds on the virtual clock", "Accuracy over time"
    curve = curves.against(paid, record.curve(ACCURACY))
    if not len(curve[0]):
        return []
    figure = curves.lines([Line(curve)], label, "kNN top-1 %", from_zero=False)
    return [Picture(title, figure, "The online measure over what it took to get there.")]


def _clients(record: RunRecord) -> list[Block]:
    clients = record.clients
    if clients is None:
        return []
    pictures: list[Block] = []
    if 0 < clients.images.shape[1] <= MOST_CLASSES:
        shown = client_figures.shown_clients(len(clients.images))
        most = clients.images[shown].max()
        held = f"Training images of each class that each client holds; the darkest cell has {most:,}."
        if len(shown) < len(clients.images):
            held += f" Shown: {len(shown)} of the {len(clients.images):,} clients, evenly spaced."
        pictures.append(Picture("Who holds what", client_figures.distribution(clients), held))
    given = "Clients of each round: those whose result counted, and why others gave nothing."
    counted = "Rounds in which each client's result counted."
    computed = "Of each client's local training over the whole run."
    return [
        *pictures,
        Picture("Participation", curves.participation(record), given),
        Picture("Rounds of each client", client_figures.each_client(clients.rounds, "rounds"), counted),
        Picture("Computation of each client", client_figures.each_client(clients.macs / 1e9, "GMACs"), computed),
    ]


def _evaluation(record: RunRecord, details: EvaluationDetails) -> list[Section]:
    """Pictures of each encoder: before and after training, and at random initialisation where that differs."""
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
