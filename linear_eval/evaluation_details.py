"""Details of an evaluation beyond its figures, for plots: confusion, maps, neighbours and layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linear_eval.evaluate import ClassifierReport
from linear_eval.features import Features, linear_cka
from linear_eval.knn import nearest

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class EncoderDetails:
    """Details of one encoder on the test images.

    Args:
        confusion: Confusion matrix of the linear probe, (classes, classes); row = target, column = predicted.
        map: Coordinates of the images of the map on the first two principal components of all test features, (P, 2).
        map_shares: Share of the variance along each of the two, (2,).
        neighbour_images: Training images with the features most similar to each query's, uint8 (Q, K, C, H, W); (0, K,
            C, H, W) where images must not be shown.
        neighbour_labels: Classes of these training images, (Q, K).
        similarity: CKA of the trained encoder's layers (rows) with this encoder's, (L, M); empty without layers.
    """

    confusion: np.ndarray
    map: np.ndarray
    map_shares: np.ndarray
    neighbour_images: np.ndarray
    neighbour_labels: np.ndarray
    similarity: np.ndarray


@dataclass(frozen=True)
class EvaluationDetails:
    """Details of several encoders on the same test images; classes are indices into ``classes``.

    Args:
        classes: Names of the classes, (C,).
        map_labels: Classes of the images of the map, (P,).
        query_images: Test images whose neighbours are shown, uint8 (Q, C, H, W); none where images must not be shown.
        query_labels: Classes of the queries, (Q,).
        layers: Names of the layers, (L,); empty if none are known.
        encoders: Details by encoder: ``encoder`` is the trained one, ``random_init`` one at random initialisation, and
            ``start`` the one that training started from, where that differs.
        layer_outputs: Outputs of the trained encoder's layers, one float16 matrix (N, D_i) each, for similarities with
            other runs.
    """

    classes: np.ndarray
    map_labels: np.ndarray
    query_images: np.ndarray
    query_labels: np.ndarray
    layers: np.ndarray
    encoders: Mapping[str, EncoderDetails]
    layer_outputs: Sequence[np.ndarray]

    @property
    def has_pictures(self) -> bool:
        """True if the details hold images themselves."""
        return len(self.query_images) > 0

    def as_arrays(self) -> Arrays:
        """Return plain arrays, as an ``.npz`` file holds them."""
        arrays = {key: value for key, value in vars(self).items() if isinstance(value, np.ndarray)}
        for name, encoder in self.encoders.items():
            arrays |= {f"{name}.{key}": value for key, value in vars(encoder).items()}
        return arrays | {f"layer_outputs.{index}": output for index, output in enumerate(self.layer_outputs)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> EvaluationDetails:
        """Restore details from the arrays of ``as_arrays``; further arrays are ignored.

        Raises:
            KeyError: An array is missing.
        """
        names = [key.removesuffix(".confusion") for key in arrays if key.endswith(".confusion")]
        fields = list(EncoderDetails.__dataclass_fields__)
        encoders = {name: EncoderDetails(**{key: arrays[f"{name}.{key}"] for key in fields}) for name in names}
        outputs = [arrays[f"layer_outputs.{index}"] for index in range(len(arrays["layers"]))]
        plain = ("classes", "map_labels", "query_images", "query_labels", "layers")
        return cls(**{key: arrays[key] for key in plain}, encoders=encoders, layer_outputs=outputs)


MAP_IMAGES = 1000
LAYER_IMAGES = 500
QUERIES = 10
NEIGHBOURS = 5
PICTURE_PIXELS = 64


class LabelledImages(Protocol):
    """Labelled images that are gathered by index."""

    classes: tuple[str, ...]

    def gather(self, indices: Tensor) -> Tensor:
        """Return the images at ``indices`` (B,), uint8 (B, C, H, W)."""
        ...


@dataclass(frozen=True)
class Evaluated:
    """Encoder with its features and its evaluation report.

    Args:
        encoder: Maps normalised images to features (B, D).
        layers: Modules of the encoder whose outputs are compared, by name; may be empty.
        train: Features of the training images, in their order.
        test: Features of the test images, in their order.
        report: Evaluation of these features.
    """

    encoder: nn.Module
    layers: Mapping[str, nn.Module]
    train: Features
    test: Features
    report: ClassifierReport


def collect_details(
    evaluated: Mapping[str, Evaluated],
    train: LabelledImages,
    test: LabelledImages,
    normalize: Callable[[Tensor], Tensor],
    pictures: bool = False,
) -> EvaluationDetails:
    """Collect details; every encoder with layers runs once over ``LAYER_IMAGES`` images.

    Args:
        evaluated: Evaluated encoders by name; ``encoder`` is the trained one.
        train: Training images.
        test: Test images.
        normalize: Maps uint8 images (B, C, H, W) on the CPU to the encoders' input.
        pictures: Include the images themselves, which may show somebody's patients.
    """
    trained, labels = evaluated["encoder"], evaluated["encoder"].test.y.cpu()
    images = test.gather(spread(labels, LAYER_IMAGES))
    outputs = {name: layer_outputs(each.encoder, each.layers, normalize(images)) for name, each in evaluated.items()}
    queries = spread(labels, QUERIES)
    return EvaluationDetails(
        classes=np.asarray(test.classes, dtype=str),
        map_labels=labels[spread(labels, MAP_IMAGES)].numpy(),
        query_images=small_pictures(test.gather(queries if pictures else queries[:0])),
        query_labels=labels[queries].numpy(),
        layers=np.asarray(list(trained.layers), dtype=str),
        encoders={
            name: encoder_details(each, train, linear_cka(outputs["encoder"], outputs[name]), pictures)
            for name, each in evaluated.items()
        },
        layer_outputs=[small_numbers(output) for output in outputs["encoder"]],
    )


def encoder_details(
    evaluated: Evaluated, train: LabelledImages, similarity: Tensor, pictures: bool = False
) -> EncoderDetails:
    """Collect the details of one encoder.

    Args:
        evaluated: Encoder with its features and report.
        train: Training images.
        similarity: CKA of the trained encoder's layers with this one's, (L, M).
        pictures: Include the neighbours' images.
    """
    test = evaluated.test
    coordinates, shares = principal_components(F.pad(test.x, (0, max(0, 2 - test.dim))))
    index = nearest(evaluated.train, test.x[spread(test.y, QUERIES)], NEIGHBOURS)[1].cpu()
    images = small_pictures(train.gather(index.flatten() if pictures else index.flatten()[:0]))
    return EncoderDetails(
        confusion=np.asarray(evaluated.report.linear.confusion),
        map=coordinates[spread(test.y, MAP_IMAGES)].cpu().numpy(),
        map_shares=shares.cpu().numpy(),
        neighbour_images=images.reshape(*(index.shape if pictures else (0, NEIGHBOURS)), *images.shape[1:]),
        neighbour_labels=evaluated.train.y.cpu()[index].numpy(),
        similarity=similarity.float().numpy(),
    )


def spread(labels: Tensor, number: int) -> Tensor:
    """Choose positions of at most ``number`` images with the class proportions of all images.

    They are evenly spaced after sorting by class, so the choice is always the same.

    Args:
        labels: Class labels, (N,).
        number: Number of images wanted.

    Returns:
        int64 (min(N, number),), ordered by class, on the device of ``labels``.
    """
    number = min(len(labels), number)
    steps = (2 * torch.arange(number, device=labels.device) + 1) * len(labels) // (2 * max(number, 1))
    return labels.argsort(stable=True)[steps]


def small_pictures(images: Tensor) -> np.ndarray:
    """Shrink images uint8 (B, C, H, W) to at most ``PICTURE_PIXELS`` a side, for display."""
    if max(images.shape[-2:]) > PICTURE_PIXELS:
        images = F.adaptive_avg_pool2d(images.float(), PICTURE_PIXELS).round().to(torch.uint8)
    return images.numpy()


def small_numbers(output: Tensor) -> np.ndarray:
    """Convert a layer's outputs to float16, scaled to at most 1, which changes no similarity."""
    return (output / output.abs().max().clamp_min(1e-12)).half().cpu().numpy()


def layer_outputs(encoder: nn.Module, layers: Mapping[str, nn.Module], images: Tensor, batch: int = 64) -> list[Tensor]:
    """Run an encoder and return the outputs of some of its modules, averaged over positions.

    Args:
        encoder: Encoder; a copy of it runs in evaluation mode.
        layers: Modules of the encoder, each run once a pass; outputs (B, T, D), (B, D, H, W) or (B, D).
        images: Input of the encoder, (N, C, H, W).
        batch: Images a pass.

    Returns:
        One float32 matrix (N, D_i) a layer, in their order.
    """
    encoder, layers = copy.deepcopy((encoder, dict(layers)))  # hooks and mode of the original stay as they are
    kept: dict[str, list[Tensor]] = {name: [] for name in layers}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda _, __, output, name=name: kept[name].append(_pooled(output)))
    with torch.no_grad():
        encoder.eval()
        for part in images.split(batch):
            encoder(part)
    return [torch.cat(outputs) for outputs in kept.values()]


def _pooled(output: Tensor) -> Tensor:
    positions = {2: (), 3: (1,), 4: (2, 3)}[output.ndim]
    return (output.mean(dim=positions) if positions else output).float()


def principal_components(x: Tensor, dimensions: int = 2) -> tuple[Tensor, Tensor]:
    """Project features on the directions in which they vary most.

    A direction is turned so that the coordinate furthest from 0 is positive: its sign would be arbitrary otherwise.

    Args:
        x: Features (N, D) with N of 1 or more and D of ``dimensions`` or more.
        dimensions: Number of directions.

    Returns:
        Coordinates, float32 (N, dimensions), and the share of the variance along each direction, (dimensions,), which
        is 0 without variance.
    """
    centred = x.double() - x.double().mean(dim=0)
    variance, directions = torch.linalg.eigh(centred.T @ centred)
    order = torch.arange(len(variance) - 1, len(variance) - 1 - dimensions, -1, device=x.device)
    coordinates = centred @ directions[:, order]
    furthest = coordinates.gather(0, coordinates.abs().argmax(dim=0, keepdim=True))
    coordinates *= torch.where(furthest < 0, -1.0, 1.0)
    total = variance.clamp_min(0).sum()
    shares = variance[order].clamp_min(0) / total if total > 0 else torch.zeros_like(variance[order])
    return coordinates.float(), shares.float()
