"""Evaluation for each client: shared classifiers on its own test images, and a linear probe of its own labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from linear_eval.baselines import majority_metrics
from linear_eval.evaluate import EvaluationSettings, choose_probe
from linear_eval.features import Features
from linear_eval.knn import knn_predict
from linear_eval.metrics import ClassificationMetrics, classification_metrics


@dataclass(frozen=True)
class ClientScores:
    """Metrics of classifiers of frozen features on one client's test images.

    Args:
        train_images: Number of its labelled images that the classifiers learn from.
        test_images: Number of its test images.
        knn: kNN with the labelled images of all clients.
        linear: Linear probe on the labelled images of all clients.
        own_linear: Personalised linear probe, on its own labelled images; ``None`` if these have less than two classes.
        majority: The most frequent class of its own labelled images or, if it has none, of all clients'.
    """

    train_images: int
    test_images: int
    knn: ClassificationMetrics
    linear: ClassificationMetrics
    own_linear: ClassificationMetrics | None
    majority: ClassificationMetrics


def evaluate_by_client(
    clients: Mapping[str, tuple[Features | None, Features]], num_classes: int, settings: EvaluationSettings
) -> dict[str, ClientScores]:
    """Evaluate frozen features for each client.

    The shared classifiers tell whom the representation serves worst; the personalised probe, what a client gets that
    shares no labels. The latter is how Plato's examples of federated self-supervised learning evaluate: every client
    fits a linear classifier to its own labels, on the global encoder (github.com/TL-System/plato).

    Args:
        clients: Labelled features to learn from, if it has any, and to test on, of each client by name.
        num_classes: Number of classes; every label must be below it.
        settings: Neighbours and probes.

    Raises:
        ValueError: All labels to learn from are of one class, or there are none.
    """
    learnt = [train for train, _ in clients.values() if train is not None]
    if not learnt:
        raise ValueError("no client has labelled images to learn from")
    pooled = Features(torch.cat([each.x for each in learnt]), torch.cat([each.y for each in learnt]))
    shared = choose_probe(settings, len(pooled)).fit(pooled)
    scores = {}
    for name, (train, test) in clients.items():
        own = train if train is not None and len(train.y.unique()) > 1 else None
        fitted = choose_probe(settings, len(own)).fit(own) if own else None
        votes = knn_predict(pooled, test.x, num_classes, settings.knn_k, settings.knn_temperature)
        scores[name] = ClientScores(
            train_images=len(train) if train else 0,
            test_images=len(test),
            knn=classification_metrics(test.y, votes, num_classes),
            linear=classification_metrics(test.y, shared.predict(test.x), num_classes),
            own_linear=classification_metrics(test.y, fitted.predict(test.x), num_classes) if fitted else None,
            majority=majority_metrics((train or pooled).y, test.y, num_classes),
        )
    return scores
