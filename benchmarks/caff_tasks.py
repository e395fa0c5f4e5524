"""Tasks of the CAFF benchmark: image classification and language modelling, from pretrained weights."""

from __future__ import annotations

import logging
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.optim import AdamW

from fedssl import IID, CentralizedSSL, FederatedData, FederatedSSL, FederatedText, ImageData
from fedssl.data.clients import ClientData
from fedssl.data.datasets.texts import load_text
from fedssl.data.partition import Partitioner
from fedssl.protocol.parts import MethodFactory
from fedssl.utils.files import write_atomically
from layerwise import CausalTransformerSpec, EncoderSpec, EndToEnd
from linear_eval import TimmEncoder
from linear_eval.baselines import PROBE_SIDE, pixel_features
from linear_eval.features import Features
from linear_eval.metrics import classification_metrics
from linear_eval.ngram import ngram_perplexity
from linear_eval.probe import LogisticProbe
from ssl_methods import LanguageModelling, NaturalViews, SimCLR, Supervised, TwoViews

CLIENTS, COHORT, DEPTH = 9, 3, 6
PRETRAINING_SEED = 7
WEIGHT_DECAY = 1e-3


@dataclass(frozen=True)
class Task(ABC):
    """Data, network and pretraining.

    Args:
        root: Folder of the data sets.
        work: Folder of pretrained weights and cut texts.
        quick: Whether everything is so small that numbers mean nothing.
    """

    root: str
    work: Path
    quick: bool = False

    name: ClassVar[str]
    measure: ClassVar[str]
    batch_size: ClassVar[int]
    learning_rate: ClassVar[float]
    adapter_learning_rate: ClassVar[float]
    full_rounds: ClassVar[int]
    keeps_heads: ClassVar[bool] = False
    """Finetuning starts from the head of the pretraining, which had the same objective."""

    @property
    def rounds(self) -> int:
        """Communication rounds."""
        return 2 if self.quick else self.full_rounds

    @property
    def views(self) -> TwoViews | None:
        """Augmentation of the finetuning."""
        return None

    @abstractmethod
    def spec(self, depth: int, width: int = 64, heads: int = 4, weights: Path | None = None) -> Any:
        """The encoder."""

    @abstractmethod
    def method(self) -> MethodFactory:
        """The objective of the finetuning."""

    @abstractmethod
    def data(self, partition: Partitioner, seed: int) -> ClientData:
        """Data of the finetuning."""

    @abstractmethod
    def quality(self, module: FederatedSSL, data: ClientData) -> dict[str, Any]:
        """Quality of a finetuned model, by the main measure of the task and by others."""

    @abstractmethod
    def baselines(self, seed: int, weights: Path) -> dict[str, dict[str, Any]]:
        """Quality of what finetunes no network, by name: on the data of this seed, from the pretrained weights."""

    def weights(self, depth: int) -> Path:
        """The folder of pretrained weights of a depth, trained now if they are not there."""
        folder = self.work / f"pretrained-{self.name}-{depth}"
        if not folder.exists():
            print(f"pretraining {folder.name}", flush=True)
            self._pretrain(depth, folder)
        return folder

    @abstractmethod
    def _pretrain(self, depth: int, folder: Path) -> None:
        """Writes the weights."""


class Images(Task):
    """Fashion-MNIST, from weights that SimCLR learns without labels on other images of it."""

    name, measure = "images", "accuracy"
    batch_size, full_rounds = 32, 24
    learning_rate, adapter_learning_rate = 1e-3, 5e-3
    pretraining_images, pretraining_epochs = 20_000, 20
    test_images = 2000

    @property
    def views(self) -> TwoViews:
        """Flips and shifts."""
        return TwoViews(flip=0.5, shift=0.08)

    def spec(self, depth: int, width: int = 64, heads: int = 4, weights: Path | None = None) -> EncoderSpec:
        """A Vision Transformer over 16 patches."""
        options = {"patch_size": 7, "depth": depth, "embed_dim": width, "num_heads": heads, "global_pool": "avg"}
        options |= {"class_token": False, "weight_init": "moco"}
        return EncoderSpec("vit_tiny_patch16_224", 28, 1, "sincos", options, weights=str(weights) if weights else None)

    def method(self) -> MethodFactory:
        """A linear classifier."""
        return partial(Supervised, num_classes=10)

    def data(self, partition: Partitioner, seed: int) -> FederatedData:
        """120 labelled images a client."""
        images = CLIENTS * (20 if self.quick else 120)
        return FederatedData(
            CLIENTS, partition, dataset="fashion_mnist", root=self.root, train_images=images, seed=seed
        )

    def quality(self, module: FederatedSSL, data: ClientData) -> dict[str, Any]:
        """Accuracy on test images in percent, and that of each class."""
        assert isinstance(data, FederatedData)
        test = data.eval_test.subset(torch.arange(100 if self.quick else self.test_images))
        module.eval()
        with torch.no_grad():
            scores = [
                module.classify(module.normalize(test.gather(rows))) for rows in torch.arange(len(test)).split(500)
            ]
        return _accuracies(test.labels, torch.cat([each for each in scores if each is not None]).argmax(dim=1))

    def baselines(self, seed: int, weights: Path) -> dict[str, dict[str, Any]]:
        """Linear probes of raw pixels and of the pretrained encoder, on the images that clients finetune with."""
        data, encoder = self.data(IID(), seed), TimmEncoder(str(weights)).eval()
        data.setup("fit")
        test = data.eval_test.subset(torch.arange(100 if self.quick else self.test_images))

        def encode(images: Tensor) -> Tensor:
            with torch.no_grad():
                return torch.cat([encoder.encoder(encoder.normalize(each)) for each in images.split(500)])

        maps = {
            "raw pixels, linear probe": partial(pixel_features, side=PROBE_SIDE),
            "pretrained, linear probe": encode,
        }
        found = {}
        for name, features in maps.items():
            train, asked = (features(each.gather(torch.arange(len(each)))) for each in (data.pool, test))
            probe = LogisticProbe().fit(Features(train, data.pool.labels))
            found[name] = _accuracies(test.labels, probe.predict(asked))
        return found

    def _pretrain(self, depth: int, folder: Path) -> None:
        number, epochs = (200, 1) if self.quick else (self.pretraining_images, self.pretraining_epochs)
        method = partial(SimCLR, temperature=0.2, hidden_dim=256, output_dim=128)
        optimizer = partial(AdamW, lr=1e-3, weight_decay=1e-5)
        module = CentralizedSSL(self.spec(depth), method, NaturalViews(), optimizer, seed=PRETRAINING_SEED)
        data = ImageData("fashion_mnist", self.root, train_images=number, batch_size=64, seed=PRETRAINING_SEED)
        fit(module, data, epochs)
        module.export(folder)


class Text(Task):
    """The end of tiny Shakespeare, from weights that language modelling learns on its beginning."""

    name, measure = "text", "perplexity"
    batch_size, full_rounds, context = 16, 18, 64
    keeps_heads = True
    learning_rate, adapter_learning_rate = 1e-3, 1e-2
    pretraining_epochs = 10
    cuts: ClassVar[dict[str, tuple[int, int]]] = {"pretraining": (0, 900_000), "finetuning": (1_000_000, 1_060_000)}
    """Characters that are used; between them lie other plays."""

    def spec(self, depth: int, width: int = 64, heads: int = 4, weights: Path | None = None) -> CausalTransformerSpec:
        """A causal transformer."""
        return CausalTransformerSpec(97, self.context, depth, width, heads, str(weights) if weights else None)

    def method(self) -> MethodFactory:
        """The next character."""
        return LanguageModelling

    def data(self, partition: Partitioner, seed: int) -> FederatedText:
        """Pieces of the end."""
        return self._text("finetuning", CLIENTS, partition, seed)

    def quality(self, module: FederatedSSL, data: ClientData) -> dict[str, Any]:
        """Perplexity a character of the held-out pieces."""
        assert isinstance(data, FederatedText)
        held = data.eval_test
        module.eval()
        with torch.no_grad():
            nats = [module.token_nll(held.gather(rows)) for rows in torch.arange(len(held)).split(64)]
        return {"perplexity": torch.cat([each for each in nats if each is not None]).mean().exp().item()}

    def baselines(self, seed: int, weights: Path) -> dict[str, dict[str, Any]]:
        """The pretrained model as it is, and counters of n-grams."""
        data, before = self.data(IID(), seed), self._text("pretraining", 1, IID(), PRETRAINING_SEED)
        for each in (data, before):
            each.setup("fit")
        module = FederatedSSL(
            self.spec(DEPTH, weights=weights),
            self.method(),
            None,
            partial(AdamW, lr=1.0),
            EndToEnd(),
            1,
            heads=str(weights),
            seed=seed,
        )
        module.prepare(data)
        known, more, asked = (each.gather(torch.arange(len(each))) for each in (data.pool, before.pool, data.eval_test))
        counted = {
            "4-grams of the finetuning text": known,
            "4-grams of both texts": torch.cat([known, more]),
        }
        found = {"pretrained, not finetuned": self.quality(module, data)}
        for name, text in counted.items():
            found[name] = ngram_perplexity(text, asked, data.vocabulary).as_dict()
        return found

    def _text(self, part: str, clients: int, partition: Partitioner, seed: int) -> FederatedText:
        start, end = self.cuts[part]
        if self.quick:
            end = start + 15_000
        file = self.work / f"{part}-{end - start}.txt"
        if not file.exists():
            whole = load_text("tiny_shakespeare", self.root, download=True)
            write_atomically(file, lambda path: path.write_text(whole[start:end], encoding="utf-8"))
        return FederatedText(file.name, str(self.work), self.context, clients, partition, 0.05, 0.25, seed=seed)

    def _pretrain(self, depth: int, folder: Path) -> None:
        epochs = 1 if self.quick else self.pretraining_epochs
        optimizer = partial(AdamW, lr=2e-3)
        scheme, seed = EndToEnd(), PRETRAINING_SEED
        module = FederatedSSL(
            self.spec(depth), self.method(), None, optimizer, scheme, epochs, batch_size=32, seed=seed
        )
        fit(module, self._text("pretraining", 1, IID(), seed), epochs)
        module.export(folder)


def _accuracies(labels: Tensor, predicted: Tensor) -> dict[str, Any]:
    found = classification_metrics(labels, predicted, 10)
    return {"accuracy": found.accuracy, "per_class": list(found.per_class_accuracy)}


def fit(module: LightningModule, data: LightningDataModule, epochs: int) -> None:
    """Trains without output, checkpoints and evaluation."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    silent: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            num_sanity_val_steps=0,
            limit_val_batches=0,
            enable_model_summary=False,
            **silent,
        )
        trainer.fit(module, datamodule=data)
