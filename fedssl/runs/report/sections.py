"""Sections of a run's report: their figures and tables."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.figure import Figure

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
COST = "What devices paid, counted while they trained: tensors that travelled, operations that ran."
MAP = "Up to 1,000 test images on the first two principal components of the features; labels only colour them."
NEIGHBOURS = "Framed by whether the class is that of the test image; another class is named."
LAYERS = "Linear CKA of layers' mean outputs on test images: 1 is equal up to rotation and scale, 0 unrelated."


def run_sections(record: RunRecord) -> list[Section]:
    """Build all sections; those whose data the run did not record have no blocks."""
    return [
        Section("Quality", [summary.quality(record.results), *_training(record)]),
        Section("Cost", _cost(record) if record.federated else [], COST),
        Section("Clients", _clients(record)),
        Section("Classes", _classes(record), "The linear probe on the test images."),
        Section("Representation", _encoders(record, representation.flat_map, "Map", MAP)),
        Section("Neighbours", _neighbours(record)),
        Section("Layers", _layers(record)),
        Section("Origin", [summary.origin_table(record), Listing("config.yaml", record.shown_configuration)]),
    ]


def _training(record: RunRecord) -> list[Block]:
    """Pictures of accuracy and loss during training."""
    knn = [Line(record.curve("eval/knn_top1"))]
    bits = [Line(record.curve("eval/bits_per_character"))]
    losses = [Line(record.curve(key), name) for key, name in LOSSES.items() if record.curve(key)[0]]
    several = len(record.stages()) > 1
    queries = "Online measure, on training images held out as queries." + " Vertical lines end stages." * several
    weighted = "Of training, weighted by images." + " Losses of different stages need not compare." * several
    return [
        Picture(title, curves.lines(drawn, record.unit, label, record.stages(), from_zero=False), caption)
        for title, drawn, label, caption in (
            (f"Accuracy over the {record.unit}s", knn, "kNN top-1 %", queries),
            (f"Held-out text over the {record.unit}s", bits, "bits a character", "Online measure, on held-out text."),
            (f"Loss over the {record.unit}s", losses, "loss", weighted),
        )
        if drawn and drawn[0].curve[0]
    ]


def _cost(record: RunRecord) -> list[Block]:
    """Pictures of memory, computation and traffic over the rounds, after figure 5 of LW-FedSSL (arXiv 2401.11647)."""
    rounds, peaks = record.curve("cost/peak_activation_bytes")
    memory = [(at, peak / MIB) for at, peak in zip(rounds, peaks, strict=True) if peak]
    macs = curves.mean_of_participants(record, "cost/macs", scale=1e9)
    down, up = (
        curves.so_far(curves.mean_of_participants(record, f"cost/{way}_bytes", scale=MIB)) for way in ("down", "up")
    )
    panels: list[tuple[str, list[Line], str, str]] = [
        (
            "Memory",
            [Line(([at for at, _ in memory], [peak for _, peak in memory]), steps=True)],
            "activations of a step (MiB)",
            "Most bytes kept for backward in a local step of any client of the round.",
        ),
        (
            "Computation",
            [Line(macs, steps=True)],
            "GMACs a round",
            "Multiply-accumulates of local training, forward and backward; mean of the round's clients.",
        ),
        (
            "Traffic",
            [Line(down, "received"), Line(up, "sent")],
            "MiB since the run began",
            "Mean of each round's clients, added up. Frozen layers are received once, after their stage.",
        ),
    ]
    stages = record.stages()
    pictures: list[Block] = [
        Picture(title, curves.lines(drawn, record.unit, label, stages), caption)
        for title, drawn, label, caption in panels
        if drawn[0].curve[0]
    ]
    both = down[0], [received + sent for received, sent in zip(down[1], up[1], strict=True)]
    return [
        *pictures,
        *accuracy_over_cost(record, both),
        cost_table(record.results, "A device over the whole run"),
        summary.stage_table(record),
    ]


def accuracy_over_cost(record: RunRecord, traffic: Curve) -> list[Block]:
    """Picture of kNN accuracy over the virtual clock or, if no device has a speed, over traffic."""
    paid, label, title = traffic, "MiB received and sent by a client", "Accuracy over traffic"
    clock = record.curve("time/simulated_seconds")
    if any(clock[1]):
        paid, title = clock, "Accuracy over time"
        label = "seconds on the virtual clock"
    line = Line(curves.against(paid, record.curve("eval/knn_top1")))
    if not line.curve[0]:
        return []
    figure = curves.lines([line], label, "kNN top-1 %", from_zero=False)
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


def _classes(record: RunRecord) -> list[Block]:
    details = record.evaluation
    if details is None:
        return []
    accuracy = "Share of each class's images that the probe gets right, worst class first."
    confusion = "Percent of each true class (row) that the probe takes for each class (column), after training."
    return [
        Picture("Accuracy of each class", representation.per_class_accuracy(details), accuracy),
        Picture("Confusion", representation.confusion(details), confusion),
    ]


def _neighbours(record: RunRecord) -> list[Block]:
    known = record.evaluation is not None and record.evaluation.has_pictures
    return _encoders(record, representation.neighbours, "Nearest images", NEIGHBOURS) if known else []


def _layers(record: RunRecord) -> list[Block]:
    known = record.evaluation is not None and len(record.evaluation.layers) > 0

    def draw(details: EvaluationDetails, name: str) -> Figure:
        return representation.similarity(details, name, f"layer {record.encoders[name]}")

    return _encoders(record, draw, "Trained layers against layers", LAYERS) if known else []


def _encoders(
    record: RunRecord, draw: Callable[[EvaluationDetails, str], Figure], what: str, caption: str
) -> list[Block]:
    """Same picture of each encoder: before and after training, and at random initialisation where that differs."""
    details = record.evaluation
    if details is None:
        return []
    known = [(name, title) for name, title in record.encoders.items() if name in details.encoders]
    return [Picture(f"{what} {title}", draw(details, name), caption) for name, title in known]
