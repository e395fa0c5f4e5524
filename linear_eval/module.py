"""Lightning module for validation (kNN, or perplexity of text) and test (the whole evaluation)."""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from linear_eval.baselines import KNN_SIDE, PROBE_SIDE, majority_metrics, pixel_features
from linear_eval.evaluate import (
    ClassifierReport,
    EvaluationSettings,
    evaluate_classifiers,
    evaluate_features,
    knn_report,
)
from linear_eval.evaluation_details import Evaluated, EvaluationDetails, collect_details
from linear_eval.features import Features
from linear_eval.finetune import FinetuneSettings, finetune
from linear_eval.metrics import ClassificationMetrics, Perplexity, classification_metrics
from linear_eval.ngram import ngram_perplexity

Batch: TypeAlias = tuple[Tensor, Tensor]
LOGGED = (
    *("knn_top1", "knn_centred_top1", "linear_top1", "linear_mean_per_class"),
    *("feature_std", "rankme", "rankme_centred"),
)
RAW_PIXELS, POOLED_PIXELS = "raw_pixels", "pooled_pixels"
SIDES = {RAW_PIXELS: KNN_SIDE, POOLED_PIXELS: PROBE_SIDE}
"""Most cells a side of the pixels that kNN and the probe of ``raw_pixels`` get."""


class EvaluatedModule(LightningModule):
    """Lightning module that evaluates ``encoder`` on labelled images, or a language model on held-out text.

    Images take one pass of features. The data module must give two loaders of (uint8 images (B, C, H, W), labels (B,)):
    for ``validate`` the bank and the queries of kNN, both cut from the training split; for ``test`` the training and
    the test split, and perhaps a third loader, of training images that only vote in ``knn_full``. It must have
    ``num_classes``, and for fine-tuning and ``details`` the data sets ``eval_train`` and ``eval_test``. For text it
    must give one loader of (texts (B, T + 1), anything), ``vocabulary``, and the texts ``pool`` and ``eval_test``; kNN,
    probes, fine-tuning and details do not apply.

    Args:
        encoder: Maps normalised images to features (B, D).
        evaluation: Settings of kNN and probe.
        finetuning: Settings for fine-tuning copies of the encoder and of ``random_init`` in ``test`` too; ``None``
            leaves that out.
        seed: Seed of the fine-tuning.

    Attributes:
        reports: After ``test``: the reports of the ``encoder``, the ``untrained`` ones and ``raw_pixels``, by name.
        classifiers: After ``test``: metrics of other classifiers by name: ``majority``, the most frequent class;
            ``classifier``, of ``classify``; ``finetuned``; ``random_init_finetuned``, which is training from scratch.
        perplexity: After ``test``: likelihood of the text; ``None`` for images.
        start_perplexity: After ``test``: likelihood of the text by the language model that training started from;
            ``None`` if there was none.
        ngram_perplexity: After ``test``: likelihood of the text by a counter of n-grams; ``None`` for images.
    """

    def __init__(
        self,
        encoder: nn.Module,
        evaluation: EvaluationSettings,
        finetuning: FinetuneSettings | None,
        seed: int,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.evaluation = evaluation
        self.finetuning = finetuning
        self.seed = seed
        self.reports: dict[str, ClassifierReport] = {}
        self.classifiers: dict[str, ClassificationMetrics] = {}
        self.perplexity: Perplexity | None = None
        self.start_perplexity: Perplexity | None = None
        self.ngram_perplexity: Perplexity | None = None

    @abstractmethod
    def normalize(self, images: Tensor) -> Tensor:
        """Map uint8 images to the encoder's float input."""

    def classify(self, images: Tensor) -> Tensor | None:
        """Return class scores (B, classes) of normalised images from a classifier trained with the encoder.

        ``None`` means that there is no such classifier.
        """
        return None

    def token_nll(self, texts: Tensor) -> Tensor | None:
        """Return the negative log-likelihood (N,) of each predicted character in texts (B, T + 1), or ``None``.

        ``None`` means that there is no language model: features are evaluated.
        """
        return None

    def start_nll(self, texts: Tensor) -> Tensor | None:
        """Return the same from the language model that training started from; ``None`` if it started at random."""
        return None

    def untrained(self) -> dict[str, nn.Module]:
        """Return encoders to evaluate beside the trained one, by name: the start of the training, and chance.

        ``random_init`` is the encoder at random initialisation. ``start`` is the one that the run started from, where
        that differs.
        """
        return {}

    def layers(self, encoder: nn.Module) -> dict[str, nn.Module]:
        """Return the modules of an encoder whose outputs are compared, in order; by default none."""
        return {}

    def details(self, pictures: bool = False) -> EvaluationDetails:
        """Return the details that plots of the evaluation need; call it after ``test``.

        Args:
            pictures: Include images of the data.
        """
        evaluated = {}
        for name, encoder in self._collected.encoders.items():
            encoder.to(self.device)
            train, test, *_ = self._collected.features(name)
            evaluated[name] = Evaluated(encoder, self.layers(encoder), train, test, self.reports[name])
        return collect_details(
            evaluated,
            self._data.eval_train,
            self._data.eval_test,
            lambda images: self.normalize(images.to(self.device)),
            pictures,
        )

    @torch.no_grad()
    def encode(self, batches: Iterable[Batch]) -> Tensor:
        """Encode labelled images in their order, and return the features, float32 (N, D), on the CPU.

        Args:
            batches: Batches of uint8 images (B, C, H, W) with their labels, which are not used.
        """
        self.encoder.to(self.device).eval()
        return torch.cat([self.encoder(self.normalize(images.to(self.device))).float().cpu() for images, _ in batches])

    def on_validation_epoch_start(self) -> None:
        """Lightning's hook: start collecting features of the encoder."""
        self._collected = _Collected({"encoder": self.encoder})

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Collect features of the bank (loader 0) and the queries (loader 1)."""
        self._collect(batch, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """Log the figures of ``knn_report`` as ``eval/...``; for text, those of ``Perplexity``."""
        if self._collected.perplexity.characters:
            self._log_perplexity("eval")
            return
        bank, query = self._collected.features("encoder")
        report = knn_report(bank, query, self._data.num_classes, self.evaluation)
        self.log_dict({f"eval/{key}": value for key, value in report.items()})
        self._classified("eval")

    def on_test_epoch_start(self) -> None:
        """Lightning's hook: start collecting features of the encoder and of the untrained ones."""
        untrained = {name: encoder.to(self.device).eval() for name, encoder in self.untrained().items()}
        self._collected = _Collected({"encoder": self.encoder} | untrained, SIDES)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Collect features of the training split (loader 0) and the test split (loader 1)."""
        self._collect(batch, dataloader_idx)
        nll = self.start_nll(batch[0])
        if nll is not None:
            self._collected.start_perplexity += nll

    def on_test_epoch_end(self) -> None:
        """Fill ``reports`` and log them as ``test/...`` and ``test/random_init_...``; for text, fill ``perplexity``.

        The keys differ from ``eval/...``, which is measured on other images.
        """
        if self._collected.perplexity.characters:
            self.perplexity = self._log_perplexity("test")
            if self._collected.start_perplexity.characters:
                self.start_perplexity = self._collected.start_perplexity
            data = self._data
            train, test = (part.gather(torch.arange(len(part))) for part in (data.pool, data.eval_test))
            self.ngram_perplexity = ngram_perplexity(train, test, data.vocabulary)
            return
        self._evaluate_features()
        if classified := self._classified("test"):
            self.classifiers["classifier"] = classified
        if self.finetuning:
            self._finetune(self.finetuning)

    def _evaluate_features(self) -> None:
        num_classes, settings = self._data.num_classes, self.evaluation
        for name in self._collected.encoders:
            train, test, *rest = self._collected.features(name)
            self.reports[name] = evaluate_features(train, test, num_classes, settings, *rest)
        self.classifiers = {"majority": majority_metrics(train.y, test.y, num_classes)}
        train, test, *rest = self._collected.pop(RAW_PIXELS)  # at once: they can be larger than all features
        probed = self._collected.pop(POOLED_PIXELS)
        pairs = (train, test), (probed[0], probed[1])
        self.reports[RAW_PIXELS] = evaluate_classifiers(*pairs, num_classes, settings, *rest)
        for name, report in self.reports.items():
            values = report.as_dict()
            self.log_dict({f"test/{_prefix(name)}{key}": float(values[key]) for key in LOGGED if key in values})

    def _collect(self, batch: Any, loader: int) -> None:
        nll = self.token_nll(batch[0])
        if nll is not None:
            self._collected.perplexity += nll
            return
        images = self.normalize(batch[0])
        self._collected.add(batch[0], images, batch[1], loader)
        scores = self.classify(images) if loader == 1 else None
        if scores is not None:
            self._collected.predicted.append(scores.argmax(dim=1))

    def _log_perplexity(self, group: str) -> Perplexity:
        perplexity = self._collected.perplexity
        self.log_dict({f"{group}/{key}": value for key, value in perplexity.as_dict().items()})
        return perplexity

    def _classified(self, group: str) -> ClassificationMetrics | None:
        """Log the trained classifier's accuracy on loader 1; return ``None`` without a classifier."""
        if not self._collected.predicted:
            return None
        query = self._collected.features("encoder")[1]
        predicted = torch.cat(self._collected.predicted)
        # the classifier may know classes that these images lack
        num_classes = max(self._data.num_classes, int(predicted.max()) + 1)
        metrics = classification_metrics(query.y, predicted, num_classes)
        self.log(f"{group}/classifier_top1", metrics.accuracy)
        return metrics

    def _finetune(self, settings: FinetuneSettings) -> None:
        """Fine-tune the encoder and, as training from scratch does, the one at random initialisation."""
        data = self._data
        for name in ("encoder", "random_init"):
            if name in self._collected.encoders:
                train = self._collected.features(name)[0]
                found = finetune(
                    self._collected.encoders[name],
                    train.dim,
                    data.eval_train,
                    data.eval_test,
                    data.num_classes,
                    settings=settings,
                    normalize=self.normalize,
                    seed=self.seed,
                    device=self.device,
                )
                self.classifiers[f"{_prefix(name)}finetuned"] = found
                self.log(f"test/{_prefix(name)}finetuned_top1", found.accuracy)

    @property
    def _data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]


def _prefix(name: str) -> str:
    return "" if name == "encoder" else f"{name}_"


class _Collected:
    """Results gathered batch by batch: features over the loaders, predictions, likelihoods.

    Args:
        encoders: Encoders by name.
        sides: Most cells a side of the pixels that are features themselves, by name.
    """

    def __init__(self, encoders: dict[str, nn.Module], sides: Mapping[str, int] | None = None) -> None:
        self.encoders = encoders
        self.predicted: list[Tensor] = []
        self.perplexity, self.start_perplexity = Perplexity(), Perplexity()
        self._sides = sides or {}
        self._features: defaultdict[str, defaultdict[int, list[Batch]]] = defaultdict(lambda: defaultdict(list))

    def add(self, images: Tensor, normalised: Tensor, labels: Tensor, loader: int) -> None:
        """Encode one batch of a loader with every encoder."""
        for name, encoder in self.encoders.items():
            self._features[name][loader].append((encoder(normalised).float(), labels))
        for name, side in self._sides.items():
            self._features[name][loader].append((pixel_features(images, side), labels))

    def features(self, name: str) -> list[Features]:
        """Return the features of each loader."""
        return [_joined(part) for part in self._features[name].values()]

    def pop(self, name: str) -> list[Features]:
        """Return the features of each loader, and forget the batches of one before the next is joined."""
        parts = self._features.pop(name)
        return [_joined(parts.pop(loader)) for loader in sorted(parts)]


def _joined(batches: list[Batch]) -> Features:
    x, y = map(torch.cat, zip(*batches, strict=True))
    return Features(x, y)
