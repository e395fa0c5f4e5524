"""Details of an evaluation beyond its figures, for plots: confusion, maps, neighbours and layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

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
