"""Report of a comparison: the figures and tables of its page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from fedssl.comparison import curves as figures
from fedssl.comparison.curves import ACCURACY, band, layer_similarity, records
from fedssl.comparison.rows import Row, baseline, shares
from fedssl.comparison.run import differences
from fedssl.comparison.table import ComparisonTable, percent
from fedssl.runs.report.page import Block, Picture, Section, build_page
from fedssl.runs.report.representation import layer_heat_map
from fedssl.runs.results import COSTS, KEPT, KNN, MACS, MEASURES
from fedssl.utils.tables import Table

CKA = (
    "Linear CKA of layers' mean outputs on the same test images, mean over seeds: 1 is equal up to rotation and scale, "
    "0 unrelated."
)


def comparison_page(tables: Sequence[ComparisonTable], rows: Sequence[Row], command: str) -> str:
    """Render the page.

    Args:
        tables: Tables of the rows, one a data set.
        rows: Rows of the comparison.
        command: Command that reproduces the page.
    """
    runs = [run for row in rows for run in row.runs]
    done = sum(not run.failure for run in runs)
    return build_page(
        title=f"Comparison of {len(rows)} settings",
        subtitle=f"{done} of {len(runs)} runs · {' · '.join(table.title for table in tables)}",
        summary=" ".join(text for table in tables for text in (table.headline, lightest(rows, table.title)) if text),
        sections=[*(section for table in tables for section in _sections(table, rows, len(tables) > 1)), _origin(rows)],
        footer=command,
    )


def lightest(rows: Sequence[Row], data_set: str) -> str:
    """Give accuracy and cost of the row of a data set that keeps least in memory; empty without other rows."""
    priced = [row for row in rows if row.data_set == data_set and len(shares(row, rows)) == len(COSTS)]
    light = min(priced, key=lambda row: KEPT.mean(row.results) or 0, default=None)
    if light is None or baseline(light, rows) is light or not KNN.values(light.results):
        return ""
    macs, kept = (shares(light, rows)[cost] for cost in (MACS, KEPT))
    return (
        f"{light.name} keeps least in memory: {KNN.text(light.results)} % with {percent(kept)} of the activations and "
        f"{percent(macs)} of the operations of end-to-end training."
    )


def _sections(table: ComparisonTable, rows: Sequence[Row], several: bool) -> list[Section]:
    own = [row for row in rows if row.data_set == table.title]
    suffix = f" on {table.title}" if several else ""
    groups = panels(own)
    common = "; ".join(f"{key}: {value}" for key, value in table.common.items())
    return [
        Section(f"Results{suffix}", [replace(table, title=""), *table.further], common),
        Section(f"Not finished{suffix}", [Table(["run"], [[text] for text in table.failures])] * bool(table.failures)),
        Section(f"Accuracy over rounds{suffix}", [*_accuracy(groups)]),
        Section(f"Accuracy against cost{suffix}", [*_against_cost(groups)]),
        Section(f"Cost{suffix}", [*_cost(groups, own)]),
        Section(f"Layers{suffix}", [*_layers(own)]),
        Section(f"Settings{suffix}", [*_settings(own)]),
    ]


def panels(rows: Sequence[Row]) -> dict[str, dict[str, Row]]:
    """Group the rows into figures: those of one figure differ in the first label only, which names them there."""
    labels = list(dict.fromkeys(key for row in rows for key in row.labels))
    varying = [label for label in labels if len({row.labels.get(label) for row in rows}) > 1]
    groups: dict[str, dict[str, Row]] = {}
    for row in rows:
        rest = ", ".join(f"{label} {row.labels[label]}" for label in varying[1:] if row.labels.get(label))
        groups.setdefault(rest, {})[row.labels.get(varying[0], "") if varying else row.name] = row
    return groups if any(len(group) > 1 for group in groups.values()) else {"": {row.name: row for row in rows}}


def _accuracy(groups: dict[str, dict[str, Row]]) -> Iterator[Block]:
    caption = "On training images held out as queries; mean over seeds, and one standard deviation to both sides."
    for title, group in groups.items():
        read = {name: records(row) for name, row in group.items() if row.results}
        bands = {name: band([each.curve(ACCURACY) for each in runs]) for name, runs in read.items()}
        bands = {name: each for name, each in bands.items() if len(each.rounds)}
        units = " and ".join(dict.fromkeys(each.unit for runs in read.values() for each in runs))
        if bands:
            yield Picture(title or "All rows", figures.accuracy_over_rounds(bands, units), caption)


def _against_cost(groups: dict[str, dict[str, Row]]) -> Iterator[Block]:
    caption = "One point a row, with one standard deviation. Up and to the left is better."
    for cost in COSTS:
        known = {
            title: {name: row for name, row in group.items() if KNN.values(row.results) and cost.values(row.results)}
            for title, group in groups.items()
        }
        if any(known.values()):
            yield Picture(cost.title, figures.accuracy_against_cost(KNN, cost, known), caption)


def _cost(groups: dict[str, dict[str, Row]], rows: Sequence[Row]) -> Iterator[Block]:
    caption = "Of a client over the whole run; the dotted line is end-to-end training with the same method."
    for title, group in groups.items():
        known = {name: [*shares(row, rows).values()] for name, row in group.items()}
        known = {name: found for name, found in known.items() if len(found) == len(COSTS)}
        if any(share != 1 for found in known.values() for share in found):
            yield Picture(title or "All rows", figures.cost_shares(known, COSTS), caption)


def _layers(rows: Sequence[Row]) -> Iterator[Block]:
    for row in rows:
        against = baseline(row, rows)
        if against and against is not row and (found := layer_similarity(row, against)):
            figure = layer_heat_map(*found, (row.name, against.name))
            yield Picture(f"{row.name} and {against.name}", figure, CKA)


def _settings(rows: Sequence[Row]) -> Iterator[Block]:
    if found := differences([row.runs[0].configuration | {"seed_everything": None} for row in rows]):
        header = ["setting", *(row.name for row in rows)]
        yield Table(header, [[key, *texts] for key, texts in found.items()], text_columns=len(header))


def _origin(rows: Sequence[Row]) -> Section:
    runs = [(row.name, run) for row in rows for run in row.runs]
    shown = [measure for measure in MEASURES if any(measure.values([run.results]) for _, run in runs)]
    header = ["row", "seed", *(measure.title for measure in shown), "folder"]
    cells = []
    for name, run in runs:
        texts = (measure.text([run.results]) for measure in shown)
        cells.append([name, str(run.seed), *texts, str(run.folder)])
    return Section("Runs", [Table(header, cells)])
