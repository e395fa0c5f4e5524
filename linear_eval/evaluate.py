"""Frozen evaluation: kNN, linear probe and collapse measures from one pass of features."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from linear_eval.features import Features, feature_std, rankme
from linear_eval.knn import knn_predict
from linear_eval.metrics import ClassificationMetrics, classification_metrics, macro_auroc
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
class ClassifierReport:
    """Results of kNN and linear probe on one representation of the test images.

    "Centred" features are those less the mean of the features that vote. Features with a dominant mean have cosines
    near 1, and plain kNN then measures that mean as much as what tells images apart.

    Args:
        knn: Metrics of the kNN classifier.
        knn_centred: The same on centred features.
        knn_full: kNN with all labelled training images as voters, where the evaluation learns from a part of them;
            ``None`` without.
        knn_full_centred: The same on centred features.
        linear: Metrics of the linear probe.
        linear_auroc: Macro area under the ROC curves of the probe, one class against the rest, in percent; ``None`` for
            test images of one class.
        train_images: Number of training images.
        test_images: Number of test images.
        probe: Name of the probe, "logistic" or "sgd".
        probe_regularization: Chosen strength: C if logistic, weight decay if SGD.
    """

    knn: ClassificationMetrics
    knn_centred: ClassificationMetrics
    knn_full: ClassificationMetrics | None
    knn_full_centred: ClassificationMetrics | None
    linear: ClassificationMetrics
    linear_auroc: float | None
    train_images: int
    test_images: int
    probe: str
    probe_regularization: float

    def as_dict(self) -> dict[str, float | int | str]:
        """Return one flat level, ready for JSON; per-class figures stay in the metrics."""
        flat: dict[str, float | int | str] = {}
        for name, value in vars(self).items():
            if isinstance(value, ClassificationMetrics):
                flat |= value.summary(name)
            elif value is not None:
                flat[name] = value
        return flat | {"linear_precision": self.linear.precision, "linear_recall": self.linear.recall}


@dataclass(frozen=True)
class EvaluationReport(ClassifierReport):
    """Results of the frozen evaluation of an encoder. Accuracies, precision, recall, F1 and AUROC are in percent.

    Args:
        feature_std: Spread of the test features; 1 is isotropic, 0 collapsed.
        rankme: Effective rank of the test features, at most min(test images, feature_dim).
        rankme_centred: The same less the mean of the training features; of constant features it is rounding's noise.
        feature_dim: Width D of the features.
    """

    feature_std: float
    rankme: float
    rankme_centred: float
    feature_dim: int


def evaluate_features(
    train: Features,
    test: Features,
    num_classes: int,
    settings: EvaluationSettings,
    rest: Features | None = None,
) -> EvaluationReport:
    """Evaluate frozen features. The test labels are used for the metrics and for nothing else.

    Args:
        train: Labelled training features, (N, D); the bank of kNN and the training set of the probe.
        test: Labelled test features, (M, D).
        num_classes: Number of classes; every label must be below it.
        settings: Neighbours and probe.
        rest: Labelled training features that only ``knn_full`` adds to the bank, (R, D).

    Raises:
        ValueError: Widths differ, a label is out of range, or the training set has one class.
    """
    classified = evaluate_classifiers((train, test), (train, test), num_classes, settings, rest)
    return EvaluationReport(
        **vars(classified),
        feature_std=feature_std(test.x),
        rankme=rankme(test.x),
        rankme_centred=rankme(test.x - train.x.mean(dim=0)),
        feature_dim=train.dim,
    )


def evaluate_classifiers(
    voting: tuple[Features, Features],
    probed: tuple[Features, Features],
    num_classes: int,
    settings: EvaluationSettings,
    rest: Features | None = None,
) -> ClassifierReport:
    """Run kNN and linear probe, each on training and test features of its own.

    Args:
        voting: Features for kNN: the bank (N, D) and the queries (M, D).
        probed: Features of the same images for the probe, (N, E) and (M, E).
        num_classes: Number of classes; every label must be below it.
        settings: Neighbours and probe.
        rest: Labelled training features that only ``knn_full`` adds to the bank, (R, D).

    Raises:
        ValueError: Widths differ, a label is out of range, or the training set has one class.
    """
    knn, knn_centred = _both_knn(*voting, num_classes, settings)  # first: it refuses what does not fit, in no time
    full: Sequence[ClassificationMetrics | None] = (None, None)
    if rest is not None:
        full = _both_knn(voting[0].joined(rest), voting[1], num_classes, settings)
    train, test = probed
    fitted = choose_probe(settings, len(train)).fit(train)
    return ClassifierReport(
        knn=knn,
        knn_centred=knn_centred,
        knn_full=full[0],
        knn_full_centred=full[1],
        linear=classification_metrics(test.y, fitted.predict(test.x), num_classes),
        linear_auroc=macro_auroc(test.y, fitted.probabilities(test.x), fitted.classes),
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
        ``knn_top1`` and ``knn_centred_top1`` in percent, and ``feature_std``, ``rankme`` and ``rankme_centred`` of the
        query features. Centred features are those less the mean of the bank.

    Raises:
        ValueError: Widths differ, or a label is out of range.
    """
    knn, knn_centred = _both_knn(bank, query, num_classes, settings)
    return {
        "knn_top1": knn.accuracy,
        "knn_centred_top1": knn_centred.accuracy,
        "feature_std": feature_std(query.x),
        "rankme": rankme(query.x),
        "rankme_centred": rankme(query.x - bank.x.mean(dim=0)),
    }


def choose_probe(settings: EvaluationSettings, train_images: int) -> Probe:
    """Return the probe that the settings name; "auto" decides by the number of training images."""
    small = train_images <= LOGISTIC_MAX_IMAGES
    logistic = settings.probe == "logistic" or (settings.probe == "auto" and small)
    return (LogisticProbe if logistic else SGDProbe)(seed=settings.probe_seed)


def _both_knn(
    bank: Features, query: Features, num_classes: int, settings: EvaluationSettings
) -> tuple[ClassificationMetrics, ClassificationMetrics]:
    """Run kNN on plain and on centred features."""
    plain = _knn_metrics(bank, query, num_classes, settings)
    mean = bank.x.mean(dim=0)
    return plain, _knn_metrics(bank.shifted(mean), query.shifted(mean), num_classes, settings)


def _knn_metrics(
    bank: Features, query: Features, num_classes: int, settings: EvaluationSettings
) -> ClassificationMetrics:
    predicted = knn_predict(bank, query.x, num_classes, settings.knn_k, settings.knn_temperature)
    return classification_metrics(query.y, predicted, num_classes)
