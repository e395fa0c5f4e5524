"""The report of one run: which figures stand on its page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from fedssl.files import write_atomically
from fedssl.report import client_figures, curves, representation, summary
from fedssl.report.curves import Line
from fedssl.report.page import Block, Listing, Picture, Section, build_page
from fedssl.report.record import RunRecord
from linear_eval import EvaluationDetails

REPORT = "report.html"
MIB = 2**20
ENCODERS = {"random_init": "before training", "encoder": "after training"}
MAP = "Up to 1,000 test images on the first two principal components of the features; labels only colour them."
NEIGHBOURS = "Framed by whether the class is that of the test image; another class is named."


def write_run_report(folder: Path) -> Sequence[Section]:
    """Draws ``report.html`` from the other files of a run's folder.

    Returns:
        What stands on the page.

    Raises:
        FileNotFoundError: The folder holds no finished run.
    """
    record = RunRecord.read(folder)
    sections = run_sections(record)
    page = build_page(
        title=record.name[0].upper() + record.name[1:],
        subtitle=_subtitle(record),
        summary=summary.sentence(record),
        facts=summary.facts(record),
        sections=sections,
        footer=f"Run {folder.resolve().name} of fedssl {record.results['versions'].get('fedssl', '')}, "
        f"commit {record.results['commit'] or 'unknown'}, seed {record.results['seed']}.",
    )
    write_atomically(folder / REPORT, lambda path: path.write_text(page, encoding="utf-8"))
    return sections


def run_sections(record: RunRecord) -> list[Section]:
    """Everything worth showing of a run; what it did not record has no blocks."""
    return [
        Section("Quality", [summary.quality_table(record), *_quality(record)]),
        Section("Cost", _cost(record) if record.federated else [], "Of a client that takes part in every round."),
        Section("Clients", _clients(record)),
        Section("Classes", _classes(record), "The linear probe on the test images."),
        Section("Representation", _encoders(record, representation.flat_map, "Map", MAP)),
        Section("Neighbours", _encoders(record, representation.neighbours, "Nearest images", NEIGHBOURS)),
        Section("Layers", _layers(record)),
        Section("Origin", [summary.origin_table(record), Listing("config.yaml", record.configuration)]),
    ]


def _quality(record: RunRecord) -> list[Block]:
    knn = record.curve("eval/knn_top1")
    loss = [Line(record.curve(key), name) for key, name in _losses(record)]
    blocks: list[Block] = []
    if knn[0]:
        figure = curves.lines([Line(knn)], record.unit, "kNN top-1 %", record.stages(), from_zero=False)
        caption = "Measured during training, on training images held out as queries. Vertical lines end stages."
        blocks.append(Picture(f"Accuracy over the {record.unit}s", figure, caption))
    if loss:
        figure = curves.lines(loss, record.unit, "loss", record.stages(), from_zero=False)
        caption = "Of self-supervised training, weighted by images. Losses of different stages need not compare."
        blocks.append(Picture(f"Loss over the {record.unit}s", figure, caption))
    return blocks


def _losses(record: RunRecord) -> list[tuple[str, str]]:
    known = [
        ("client/loss", "clients"),
        ("server/calibration_loss", "server's calibration"),
        ("train/loss", "training"),
    ]
    return [(key, name) for key, name in known if record.curve(key)[0]]


def _cost(record: RunRecord) -> list[Block]:
    memory = [(at, value / MIB) for at, value in zip(*record.curve("cost/peak_activation_bytes"), strict=True) if value]
    peak = ([at for at, _ in memory], [value for _, value in memory])
    macs = curves.mean_of_participants(record, "cost/macs", scale=1e9)
    down, up = (
        curves.so_far(curves.mean_of_participants(record, f"cost/{way}_bytes", scale=MIB)) for way in ("down", "up")
    )
    traffic = [Line(down, "received"), Line(up, "sent")]
    stages, unit = record.stages(), record.unit
    return [
        Picture(
            "Memory",
            curves.lines([Line(peak, steps=True)], unit, "activations of a step (MiB)", stages),
            "Most bytes kept for backward in a local step of any client of the round.",
        ),
        Picture(
            "Computation",
            curves.lines([Line(macs, steps=True)], unit, "GMACs a round", stages),
            "Multiply-accumulates of local training, forward and backward, mean over the round's clients.",
        ),
        Picture(
            "Traffic",
            curves.lines(traffic, unit, "MiB since the run began", stages),
            "Mean over each round's clients, added up. A step at a stage's begin is frozen layers being sent once.",
        ),
        summary.cost_table(record),
        summary.stage_table(record),
    ]


def _clients(record: RunRecord) -> list[Block]:
    if record.clients is None:
        return []
    blocks: list[Block] = []
    if record.clients.images.size:
        caption = "Number of training images of each class that each client holds."
        blocks.append(Picture("Who holds what", client_figures.distribution(record.clients), caption))
    caption = "Clients of each round: those whose result counted, and why others gave nothing."
    blocks.append(Picture("Participation", curves.participation(record), caption))
    caption = "Rounds in which each client's result counted."
    blocks.append(Picture("Rounds of each client", client_figures.rounds_of_clients(record.clients), caption))
    return blocks


def _classes(record: RunRecord) -> list[Block]:
    if record.evaluation is None:
        return []
    return [
        Picture(
            "Accuracy of each class",
            representation.per_class_accuracy(record.evaluation),
            "Share of each class's test images that the linear probe gets right, worst class first.",
        ),
        Picture(
            "Confusion",
            representation.confusion(record.evaluation),
            "Percent of each true class (row) that is taken for each class (column), on the trained encoder.",
        ),
    ]


def _encoders(
    record: RunRecord, draw: Callable[[EvaluationDetails, str], Figure], what: str, caption: str
) -> list[Block]:
    """The same figure of the encoder before and after training, side by side."""
    details = record.evaluation
    if details is None:
        return []
    known = [(name, title) for name, title in ENCODERS.items() if name in details.encoders]
    return [Picture(f"{what} {title}", draw(details, name), caption) for name, title in known]


def _layers(record: RunRecord) -> list[Block]:
    if record.evaluation is None or not len(record.evaluation.layers):
        return []
    caption = "Linear CKA of layers' mean outputs on test images: 1 is equal up to rotation and scale, 0 unrelated."
    return _encoders(record, representation.similarity, "Trained layers compared with those", caption)


def _subtitle(record: RunRecord) -> str:
    data = record.config["data"]["init_args"]
    parts = [record.results["encoder"], f"on {data['dataset']}"]
    if record.federated:
        results = record.results
        parts.append(f"{results['clients']} clients, {results['clients_per_round']} a round")
        parts.append(f"{results['rounds']} rounds of {results['local_epochs']} local epochs")
    return " · ".join([*parts, f"seed {record.results['seed']}"])
