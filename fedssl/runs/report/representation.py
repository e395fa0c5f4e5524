"""Figures of an encoder's representation of test images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fedssl.runs.report.theme import GRID, INK, MUTED, PAPER, SERIES, heat_map, legend_above, new_axes, themed
from linear_eval import EncoderDetails, EvaluationDetails

NAMED_CLASSES = 20
SHORT_NAME = 10
UNTRAINED = {"random_init": "random init", "start": "start weights"}
RIGHT, WRONG = SERIES[2], SERIES[1]
BEHIND_TEXT = {"facecolor": PAPER, "alpha": 0.8, "linewidth": 0, "pad": 1}


def confusion(details: EvaluationDetails) -> Figure:
    """Draw the confusion matrix of the linear probe, in percent of each true class."""
    counts, names = details.encoders["encoder"].confusion, details.classes.tolist()
    percents = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return heat_map(percents, names, names, ("true class", "predicted class"), square=True)


@themed
def per_class_accuracy(details: EvaluationDetails) -> Figure:
    """Draw the linear probe's accuracy of each class, the worst first; marks show the untrained encoders."""
    accuracies = {name: class_accuracies(each.confusion) for name, each in details.encoders.items()}
    order = np.argsort(accuracies["encoder"], kind="stable")
    positions = np.arange(len(order))
    figure, axes = new_axes(height=4.2)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.barh(positions, accuracies["encoder"][order], height=0.66, color=SERIES[0], label="trained")
    for color, (name, label) in zip(SERIES[1:], UNTRAINED.items(), strict=False):
        if name in accuracies:
            axes.barh(positions, 0.9, left=accuracies[name][order] - 0.45, height=0.86, color=color, label=label)
    named = len(order) <= NAMED_CLASSES
    axes.set_yticks(positions if named else [], details.classes[order] if named else [])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.margins(y=0.01)
    axes.set_xlabel("accuracy %")
    legend_above(axes)
    return figure


def class_accuracies(counts: np.ndarray) -> np.ndarray:
    """Return the accuracy of each class in percent; NaN for a class without images."""
    images = counts.sum(axis=1)
    return np.where(images > 0, 100 * counts.diagonal() / np.maximum(images, 1), np.nan)


@themed
def flat_map(details: EvaluationDetails, name: str) -> Figure:
    """Draw test images on the first two principal components of an encoder's features, coloured by class."""
    encoder = details.encoders[name]
    figure, axes = new_axes(height=4.2)
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    for number in np.unique(details.map_labels):
        points = encoder.map[details.map_labels == number]
        color = SERIES[number % len(SERIES)]
        axes.plot(*points.T, "o", color=color, markersize=4.4, markeredgewidth=0, alpha=0.75)
    if len(details.classes) <= NAMED_CLASSES:
        _name_classes(axes, details, encoder)
    first, second = (f"{100 * share:.0f} %" for share in encoder.map_shares)
    axes.set_xlabel(f"first component ({first} of the variance)")
    axes.set_ylabel(f"second component ({second})")
    axes.set_xticks([])
    axes.set_yticks([])
    return figure


def _name_classes(axes: Axes, details: EvaluationDetails, encoder: EncoderDetails) -> None:
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontweight": "bold", "color": INK, "bbox": BEHIND_TEXT}
    for number in np.unique(details.map_labels):
        middle = np.median(encoder.map[details.map_labels == number], axis=0)
        axes.annotate(str(details.classes[number]), middle, **style)


@themed
def neighbours(details: EvaluationDetails, name: str) -> Figure:
    """Draw ten test images, each with the training images that an encoder finds most similar."""
    encoder = details.encoders[name]
    queries, columns = encoder.neighbour_labels.shape
    figure, axes = new_axes(height=4.8 * (queries + 0.4) / (columns + 1.4))
    axes.set_axis_off()
    axes.set_xlim(0, columns + 1.4)
    axes.set_ylim(queries, -0.4)
    axes.set_aspect("equal")
    axes.text(0.5, -0.12, "test image", ha="center", color=MUTED, fontsize=8.5)
    axes.text(1.4 + columns / 2, -0.12, "nearest training images", ha="center", color=MUTED, fontsize=8.5)
    for row, label in enumerate(details.query_labels):
        _picture(axes, details.query_images[row], (0, row), GRID, str(details.classes[label]))
        for column, other in enumerate(encoder.neighbour_labels[row]):
            color = RIGHT if other == label else WRONG
            name_of = "" if other == label else str(details.classes[other])
            _picture(axes, encoder.neighbour_images[row, column], (1.4 + column, row), color, name_of)
    return figure


def _picture(axes: Axes, pixels: np.ndarray, corner: tuple[float, float], frame: str, label: str) -> None:
    """Draw an image (C, H, W) into a cell of side 1, with a coloured frame and the name of its class."""
    left, top = corner
    gap = 0.05
    extent = (left + gap, left + 1 - gap, top + 1 - gap, top + gap)
    picture = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="none", extent=extent, zorder=2)
    side = 1 - 2 * gap
    axes.add_patch(Rectangle((left + gap, top + gap), side, side, fill=False, edgecolor=frame, linewidth=2, zorder=3))
    if label:
        name = label if len(label) <= SHORT_NAME else label[: SHORT_NAME - 1] + "…"
        axes.text(left + 0.11, top + 0.89, name, fontsize=7.5, color=INK, bbox=BEHIND_TEXT, zorder=4)


def similarity(details: EvaluationDetails, name: str, label: str) -> Figure:
    """Draw the CKA between the layers of the trained encoder and those of another, which may have more or fewer.

    Args:
        details: Details of the evaluation.
        name: Name of the other encoder.
        label: Axis label for its layers.
    """
    values = details.encoders[name].similarity
    own, other = (["stem", *(str(at) for at in range(1, number))] for number in values.shape)
    return layer_heat_map(values, own, other, ("layer after training", label))


def layer_heat_map(values: np.ndarray, rows: Sequence[str], columns: Sequence[str], labels: tuple[str, str]) -> Figure:
    """Draw the CKA of layers with layers, from 0 to 1; the first layer stands at the bottom left."""
    return heat_map(values[::-1], list(rows)[::-1], columns, labels, square=True, fractions=True)
