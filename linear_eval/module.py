"""Lightning module for validation (kNN, or perplexity of text) and test (the whole evaluation)."""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from linear_eval.evaluate import EvaluationReport, EvaluationSettings, evaluate_features, knn_report
from linear_eval.evaluation_details import Evaluated, EvaluationDetails, collect_details
from linear_eval.features import Features
from linear_eval.finetune import FinetuneSettings, finetune
from linear_eval.metrics import ClassificationMetrics, Perplexity, classification_metrics

LOGGED = ("knn_top1", "linear_top1", "linear_mean_per_class", "feature_std", "rankme")


class EvaluatedModule(LightningModule):
    """Lightning module that evaluates ``encoder`` on labelled images, or a language model on held-out text.

    Images take one pass of features. The data module must give two loaders of (uint8 images (B, C, H, W), labels (B,)):
    for ``validate`` the bank and the queries of kNN, both cut from the training split; for ``test`` the training and
    the test split. It must have ``num_classes``, and for fine-tuning and ``details`` the data sets ``eval_train`` and
    ``eval_test``. For text it must give one loader of (texts (B, T + 1), anything); kNN, probes, fine-tuning and
    details do not apply.

    Args:
        encoder: Maps normalised images to features (B, D).
        evaluation: Settings of kNN and probe.
        finetuning: Settings for fine-tuning a copy of the encoder in ``test`` too; ``None`` leaves that out.
        seed: Seed of the fine-tuning.

    Attributes:
        reports: After ``test``: the reports of the ``encoder`` and of the ``untrained`` ones, by name.
        classified: After ``test``: metrics of ``classify`` on the test images; ``None`` without a trained classifier.
        finetuned: After ``test``: metrics after fine-tuning; ``None`` without it.
        perplexity: After ``test``: likelihood of the text; ``None`` for images.
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
        self.reports: dict[str, EvaluationReport] = {}
        self.classified: ClassificationMetrics | None = None
        self.finetuned: ClassificationMetrics | None = None
        self.perplexity: Perplexity | None = None

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
        for name, report in self.reports.items():
            encoder = self._collected.encoders[name].to(self.device)
            evaluated[name] = Evaluated(encoder, self.layers(encoder), *self._collected.features(name), report)
        return collect_details(
            evaluated,
            self._data.eval_train,
            self._data.eval_test,
            lambda images: self.normalize(images.to(self.device)),
            pictures,
        )

    def on_validation_epoch_start(self) -> None:
        """Lightning's hook: start collecting features of the encoder."""
        self._collected = _Collected({"encoder": self.encoder})

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Collect features of the bank (loader 0) and the queries (loader 1)."""
        self._collect(batch, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """Log ``eval/knn_top1``, ``eval/feature_std`` and ``eval/rankme``; for text, the figures of ``Perplexity``."""
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
        self._collected = _Collected({"encoder": self.encoder} | untrained)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Collect features of the training split (loader 0) and the test split (loader 1)."""
        self._collect(batch, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        """Fill ``reports`` and log them as ``test/...`` and ``test/random_init_...``; for text, fill ``perplexity``.

        The keys differ from ``eval/...``, which is measured on other images.
        """
        if self._collected.perplexity.characters:
            self.perplexity = self._log_perplexity("test")
            return
        for name in self._collected.encoders:
            train, test = self._collected.features(name)
            self.reports[name] = evaluate_features(train, test, self._data.num_classes, self.evaluation)
            prefix = "test/" if name == "encoder" else f"test/{name}_"
            values = self.reports[name].as_dict()
            self.log_dict({prefix + key: float(values[key]) for key in LOGGED})
        self.classified = self._classified("test")
        if self.finetuning:
            self.finetuned = self._finetune(self.finetuning)
            self.log("test/finetuned_top1", self.finetuned.accuracy)

    def _collect(self, batch: Any, loader: int) -> None:
        nll = self.token_nll(batch[0])
        if nll is not None:
            self._collected.perplexity += nll
            return
        images = self.normalize(batch[0])
        self._collected.add(images, batch[1], loader)
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
        _, query = self._collected.features("encoder")
        predicted = torch.cat(self._collected.predicted)
        # the classifier may know classes that these images lack
        num_classes = max(self._data.num_classes, int(predicted.max()) + 1)
        metrics = classification_metrics(query.y, predicted, num_classes)
        self.log(f"{group}/classifier_top1", metrics.accuracy)
        return metrics

    def _finetune(self, settings: FinetuneSettings) -> ClassificationMetrics:
        data, width = self._data, self.reports["encoder"].feature_dim
        return finetune(
            self.encoder,
            width,
            data.eval_train,
            data.eval_test,
            data.num_classes,
            settings=settings,
            normalize=self.normalize,
            seed=self.seed,
            device=self.device,
        )

    @property
    def _data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]


class _Collected:
    """Results gathered batch by batch: features of several encoders over two loaders, predictions, likelihoods."""

    def __init__(self, encoders: dict[str, nn.Module]) -> None:
        self.encoders = encoders
        self.predicted: list[Tensor] = []
        self.perplexity = Perplexity()
        self._features: defaultdict[tuple[str, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)

    def add(self, images: Tensor, labels: Tensor, loader: int) -> None:
        """Encode one batch of a loader with every encoder."""
        for name, encoder in self.encoders.items():
            self._features[name, loader].append((encoder(images).float(), labels))

    def features(self, name: str) -> tuple[Features, Features]:
        """Return the features of both loaders."""
        first, second = (Features(*map(torch.cat, zip(*self._features[name, part], strict=True))) for part in (0, 1))
        return first, second
