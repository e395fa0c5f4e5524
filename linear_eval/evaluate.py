"""Frozen evaluation: kNN, linear probe and collapse measures from one pass of features."""

from dataclasses import dataclass
from typing import Literal, get_args

from linear_eval.features import Features, feature_std, rankme
from linear_eval.knn import knn_predict
from linear_eval.metrics import ClassificationMetrics, classification_metrics
from linear_eval.probe import LogisticProbe, Probe, SGDProbe

ProbeName = Literal["auto", "logistic", "sgd"]

LOGISTIC_MAX_IMAGES = 10_000
"""Most training images for which ``probe="auto"`` takes the logistic probe; above it takes the SGD probe."""

LARGEST_TEMPERATURE = 1e3
"""Highest temperature; from here on all neighbours have equal votes."""


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of the frozen evaluation.

    Args:
        knn_k: Number of neighbours that vote.
        knn_temperature: Temperature of the votes: the lower, the more the nearest neighbours count.
        probe: "logistic", "sgd", or "auto": logistic up to ``LOGISTIC_MAX_IMAGES`` training images, SGD above.
        probe_seed: Seed of the probe.

    Raises:
        ValueError: A value is out of its range.
    """

    knn_k: int = 20
    knn_temperature: float = 0.07
    probe: ProbeName = "auto"
    probe_seed: int = 0

    def __post_init__(self) -> None:
        if self.knn_k < 1:
            raise ValueError(f"knn_k must be 1 or more, got {self.knn_k}")
        if not 0 < self.knn_temperature <= LARGEST_TEMPERATURE:
            raise ValueError(
                f"knn_temperature must be above 0 and at most {LARGEST_TEMPERATURE:g}, got {self.knn_temperature}"
            )
        if self.probe not in get_args(ProbeName):
            raise ValueError(f"probe must be one of {', '.join(get_args(ProbeName))}, got {self.probe!r}")


@dataclass(frozen=True)
class EvaluationReport:
    """Results of the frozen evaluation. Accuracies, precision, recall and F1 are in percent.

    Args:
        knn: Metrics of the kNN classifier on the test images.
        linear: Metrics of the linear probe on the test images.
        feature_std: Spread of the test features; 1 is isotropic, 0 collapsed.
        rankme: Effective rank of the test features, at most min(test images, feature_dim).
        feature_dim: Width D of the features.
        train_images: Number of training images.
        test_images: Number of test images.
        probe: Name of the probe, "logistic" or "sgd".
        probe_regularization: Chosen strength: C if logistic, weight decay if SGD.
    """

    knn: ClassificationMetrics
    linear: ClassificationMetrics
    feature_std: float
    rankme: float
    feature_dim: int
    train_images: int
    test_images: int
    probe: str
    probe_regularization: float

    def as_dict(self) -> dict[str, float | int | str]:
        """Return one flat level, ready for JSON; per-class figures stay in ``knn`` and ``linear``."""
        return {
            "knn_top1": self.knn.accuracy,
            "knn_mean_per_class": self.knn.mean_per_class_accuracy,
            "linear_top1": self.linear.accuracy,
            "linear_mean_per_class": self.linear.mean_per_class_accuracy,
            **{f"linear_{name}": getattr(self.linear, name) for name in ("precision", "recall", "f1")},
            **{name: value for name, value in vars(self).items() if name not in ("knn", "linear")},
        }


def evaluate_features(
    train: Features, test: Features, num_classes: int, settings: EvaluationSettings
) -> EvaluationReport:
    """Evaluate frozen features. The test labels are used for the metrics and for nothing else.

    Args:
        train: Labelled training features, (N, D); the bank of kNN and the training set of the probe.
        test: Labelled test features, (M, D).
        num_classes: Number of classes; every label must be below it.
        settings: Neighbours and probe.

    Raises:
        ValueError: Widths differ, a label is out of range, or the training set has one class.
    """
    knn = _knn_metrics(train, test, num_classes, settings)  # first: it refuses what does not fit, in no time
    fitted = choose_probe(settings, len(train)).fit(train)
    return EvaluationReport(
        knn=knn,
        linear=classification_metrics(test.y, fitted.predict(test.x), num_classes),
        feature_std=feature_std(test.x),
        rankme=rankme(test.x),
        feature_dim=train.dim,
        train_images=len(train),
        test_images=len(test),
        probe=fitted.name,
        probe_regularization=fitted.regularization,
    )


def knn_report(bank: Features, query: Features, num_classes: int, settings: EvaluationSettings) -> dict[str, float]:
    """Run the cheap evaluation used during training; nothing is fitted.

    Args:
        bank: Labelled features that vote, (N, D).
        query: Labelled features to classify and to measure, (M, D).
        num_classes: Number of classes; every label must be below it.
        settings: Neighbours; the probe's settings are not used.

    Returns:
        ``knn_top1`` in percent, ``feature_std`` and ``rankme`` of the query features.

    Raises:
        ValueError: Widths differ, or a label is out of range.
    """
    return {
        "knn_top1": _knn_metrics(bank, query, num_classes, settings).accuracy,
        "feature_std": feature_std(query.x),
        "rankme": rankme(query.x),
    }


def choose_probe(settings: EvaluationSettings, train_images: int) -> Probe:
    """Return the probe that the settings name; "auto" decides by the number of training images."""
    small = train_images <= LOGISTIC_MAX_IMAGES
    logistic = settings.probe == "logistic" or (settings.probe == "auto" and small)
    return (LogisticProbe if logistic else SGDProbe)(seed=settings.probe_seed)


def _knn_metrics(
    bank: Features, query: Features, num_classes: int, settings: EvaluationSettings
) -> ClassificationMetrics:
    predicted = knn_predict(bank, query.x, num_classes, settings.knn_k, settings.knn_temperature)
    return classification_metrics(query.y, predicted, num_classes)
