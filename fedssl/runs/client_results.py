"""Results of each client: how well the encoder serves each of those whose images are labelled."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import torch

from fedssl.data.clients import cut, in_order
from fedssl.data.datasets import SampleSet
from fedssl.data.images import FederatedData
from fedssl.training.federated import FederatedSSL
from fedssl.utils.seeding import torch_generator
from fedssl.utils.tables import Table
from linear_eval import ClassificationMetrics, ClientScores, Features, evaluate_by_client

HELD_OUT = 0.2
"""Part of a client's labelled images that is tested on, where it has no test images of its own."""
MOST_ROWS = 50
ACCURACIES = {"knn_top1": "kNN %", "linear_top1": "linear %", "own_linear_top1": "own linear %"}
OWN = "the clients' own test images"
CUT_OFF = f"a random {HELD_OUT:.0%} of each client's labelled training images, in whole patients, trained on unlabelled"


def client_results(module: FederatedSSL, data: FederatedData, device: torch.device) -> dict[str, Any]:
    """Evaluate a trained encoder for each client, in plain types.

    Args:
        module: Module with the encoder.
        data: Images of the clients, after ``setup("fit")``.
        device: Device that computes; the module returns to its own.

    Returns:
        ``clients`` with the scores of each by name, in percent; ``summary`` with mean, worst and spread of each
        accuracy; ``left_out`` with the names of those without images to test on; ``tested_on`` and ``classes``.

    Raises:
        ValueError: There is nothing to learn from or to test on, a file cannot be read, or a feature is not finite.
    """
    tests, before = own_tests(data), module.device
    module.to(device)
    features: dict[str, tuple[Features | None, Features]] = {}
    try:
        for client, (name, images) in enumerate(zip(data.client_names, data.datasets.clients, strict=True)):
            labelled = images.subset(torch.nonzero(images.labels >= 0).flatten())
            train, test = (labelled, tests.get(name)) if tests else _held_out(labelled, data.seed, client)
            if test is not None and len(test):
                features[name] = (_encoded(module, data, train) if len(train) else None, _encoded(module, data, test))
    finally:
        module.to(before)  # the run goes on without these results
    scores = evaluate_by_client(features, len(data.pool.classes), module.evaluation)
    clients = {name: _plain(each) for name, each in scores.items()}
    return {
        "clients": clients,
        "summary": {key: found for key in ACCURACIES if (found := _summary(clients, key))},
        "left_out": [name for name in data.client_names if name not in clients],
        "tested_on": OWN if tests else CUT_OFF,
        "classes": list(data.pool.classes),
    }


def own_tests(data: FederatedData) -> dict[str, SampleSet]:
    """Return the labelled test images that belong to a client, by its name; empty if the data have none."""
    test = None if data.no_evaluation else data.eval_test
    if test is None or test.holders is None or test.classes != data.pool.classes or data.eval_root != data.root:
        return {}
    owners = test.holders.clients[test.rows.numpy()]
    return {
        name: test.subset(torch.from_numpy(np.flatnonzero(owners == client)))
        for client, name in enumerate(test.holders.names)
        if (owners == client).any()
    }


def describe(found: dict[str, Any]) -> str:
    """Tell mean and worst client of each accuracy, in one line."""
    said = [
        f"{ACCURACIES[key].removesuffix(' %')} {each['mean']:.1f} % (worst {each['worst']:.1f} % at "
        f"{each['worst_client']}, spread {each['spread']:.1f})"
        for key, each in found["summary"].items()
    ]
    return f"mean over {len(found['clients'])} clients: {', '.join(said)}"


def client_table(found: dict[str, Any]) -> Table:
    """Tabulate the clients, that with the worst shared probe first; of two classes, how often each is right."""
    classes = found["classes"] if len(found["classes"]) == 2 else []
    rows = []
    for name, each in sorted(found["clients"].items(), key=lambda item: item[1]["linear_top1"])[:MOST_ROWS]:
        accuracies = [each[key] for key in (*ACCURACIES, "majority_top1")]
        right = each["linear_per_class"] if classes else []
        cells = ("" if value is None else f"{value:.1f}" for value in (*accuracies, *right))
        rows.append([name, str(each["train_images"]), str(each["test_images"]), *cells])
    header = ["client", "labelled", "tested", *ACCURACIES.values(), "most frequent class %"]
    caption = (
        f"Tested on {found['tested_on']}. kNN and linear learn from the labelled images of all clients, own linear "
        "from those of the client alone."
    )
    if classes:
        caption += " Right: share of that class's images that linear gets right (sensitivity and specificity)."
    if found["left_out"]:
        caption += f" {len(found['left_out'])} clients have no labelled images to test on."
    if len(found["clients"]) > MOST_ROWS:
        caption += f" Shown: the {MOST_ROWS} worst of {len(found['clients'])}."
    return Table([*header, *(f"{name} right %" for name in classes)], rows, "Each client by itself", caption)


def _held_out(images: SampleSet, seed: int, client: int) -> tuple[SampleSet, SampleSet]:
    """Cut labelled images in those to learn from and those to test on, with whole patients in either."""
    order = torch.randperm(len(images), generator=torch_generator(seed, "client evaluation", client))
    test, train = cut(order, images.groups, round(HELD_OUT * len(images)))
    return images.subset(train), images.subset(test)


def _encoded(module: FederatedSSL, data: FederatedData, images: SampleSet) -> Features:
    return Features(module.encode(in_order(images, data.eval_batch_size)), images.labels)


def _plain(scores: ClientScores) -> dict[str, Any]:
    found: dict[str, Any] = {"train_images": scores.train_images, "test_images": scores.test_images}
    for name, metrics in vars(scores).items():
        if isinstance(metrics, ClassificationMetrics):
            found[f"{name}_top1"] = metrics.accuracy
    return {"own_linear_top1": None} | found | {"linear_per_class": list(scores.linear.per_class_accuracy)}


def _summary(clients: dict[str, dict[str, Any]], key: str) -> dict[str, Any] | None:
    """Return mean, population standard deviation and worst client of an accuracy; ``None`` if no client has it."""
    values = {name: each[key] for name, each in clients.items() if each[key] is not None}
    if not values:
        return None
    worst = min(values, key=lambda name: values[name])
    spread = statistics.pstdev(values.values())
    return {"mean": statistics.fmean(values.values()), "worst": values[worst], "worst_client": worst, "spread": spread}
