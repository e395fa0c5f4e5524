"""Base of federated and centralised pretraining: the model, its evaluation and its untrained counterparts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fedssl.data.clients import ClientData
from fedssl.data.images import ImageData
from fedssl.protocol.parts import MethodFactory, PartitionedModel, build_model
from fedssl.training.checkpoints import ORIGIN, check_origin, origin
from fedssl.training.export import export_encoder, export_text_encoder
from fedssl.training.run_progress import RunProgress, batches_left_out, reason_of_end, whole_epochs
from fedssl.utils.resources import Stopwatch
from fedssl.utils.saved_state import UnusableStateError, check_network, check_same
from fedssl.utils.seeding import derive_seed, run_seed
from layerwise import CausalTransformerSpec, EncoderSpec, StagedEncoder, build_encoder
from linear_eval import EvaluatedModule, EvaluationSettings, FinetuneSettings
from ssl_methods import OptimizerFactory, TwoViews


class Pretraining(EvaluatedModule):
    """Base of the modules that the command line trains.

    Args:
        encoder: Architecture of the encoder.
        method: Self-supervised method.
        augment: Augmentation that makes two views of a batch of images; its mean and std also normalise images for
            evaluation. ``None`` for text.
        optimizer: Optimizer of local (or centralised) training.
        evaluation: Settings of the kNN and linear evaluation. A language model has none: its perplexity is evaluated.
        finetuning: Settings for fine-tuning a copy in the final evaluation; ``None`` skips it.
        seed: Seed of every random choice; ``None`` takes the run's.

    Attributes:
        progress: Progress of ``fit``; ``None`` before its end.
    """

    def __init__(
        self,
        encoder: EncoderSpec | CausalTransformerSpec,
        method: MethodFactory,
        augment: TwoViews | None,
        optimizer: OptimizerFactory,
        evaluation: EvaluationSettings = EvaluationSettings(),  # noqa: B008 (frozen)
        finetuning: FinetuneSettings | None = None,
        seed: int | None = None,
    ) -> None:
        seed = run_seed(seed)
        self._recipe = (encoder, method, augment, optimizer, seed)
        model = self.build()
        if not augment and (finetuning or evaluation != EvaluationSettings()):
            raise ValueError("evaluation and finetuning classify images: leave them out for text")
        super().__init__(model.encoder, evaluation, finetuning, seed)
        self.model = model
        self.augment = augment
        self.times = Stopwatch()
        self.progress: RunProgress | None = None
        # A tuple hides the network from ``nn.Module``, so that no checkpoint holds it. The weights are read now, since
        # the file may be gone when training ends.
        self._start = (("start", build_encoder(encoder, derive_seed(seed, "encoder"))),) if encoder.weights else ()

    def build(self) -> PartitionedModel:
        """Build a freshly initialised model; every call gives the same weights."""
        return build_model(*self._recipe)

    @property
    def summary(self) -> dict[str, str]:
        """Names of scheme and method, for tables and results."""
        return {"scheme": "centralized", "method": type(self.model.method).__name__}

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise images as in training, without augmentation."""
        assert self.augment is not None
        return self.augment.plain(images)

    def classify(self, images: Tensor) -> Tensor | None:
        """Class scores of the classifier trained with the encoder; ``None`` for a method without one."""
        return self.model.classify(images)

    def token_nll(self, texts: Tensor) -> Tensor | None:
        """Per-token negative log-likelihood in nats, or ``None`` for image encoders."""
        return self.model.method.token_nll(self.model.encoder, texts)

    def on_fit_end(self) -> None:
        """Lightning's hook; record the progress of training while the Trainer still knows it."""
        self.progress = self._progress()

    def _progress(self) -> RunProgress:
        trainer = self.trainer
        done, planned = whole_epochs(trainer), trainer.max_epochs or 0
        finished = done >= planned and not batches_left_out(trainer)
        return RunProgress("epochs", done, planned, finished, reason="" if finished else reason_of_end(trainer))

    def on_validation_start(self) -> None:
        """Lightning's hook."""
        self._evaluating = self.times("evaluation")
        self._evaluating.__enter__()

    def on_validation_end(self) -> None:
        """Lightning's hook."""
        self._evaluating.__exit__(None, None, None)

    def on_test_start(self) -> None:
        """Lightning's hook."""
        self.on_validation_start()

    def on_test_end(self) -> None:
        """Lightning's hook."""
        self.on_validation_end()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook; record the origin of the checkpoint."""
        checkpoint[ORIGIN] = origin(training=type(self).__name__)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook; check the checkpoint before any weight is overwritten.

        Raises:
            ValueError: The checkpoint belongs to a different kind of run.
        """
        try:
            check_origin(checkpoint)
        except UnusableStateError as error:
            raise ValueError(f"the checkpoint {error}") from error
        check_same(checkpoint[ORIGIN], {"training": type(self).__name__})
        check_network(checkpoint["state_dict"], self.state_dict())

    def untrained(self) -> dict[str, nn.Module]:
        """Untrained encoders to compare with: at random initialisation and, for a run that loaded weights, with these.

        The random one has the depth that the trained one has now. The loaded one keeps its full depth, since it could
        have been used as it was.
        """
        spec, seed = self._recipe[0], derive_seed(self.seed, "encoder")
        random_init = build_encoder(replace(spec, weights=None), seed)
        random_init.depth = self.model.encoder.depth
        return dict(self._start) | {"random_init": random_init}

    def layers(self, encoder: nn.Module) -> dict[str, nn.Module]:
        """Stem and present blocks of an encoder, by name."""
        assert isinstance(encoder, StagedEncoder)
        blocks = encoder.blocks[: encoder.depth]
        return {"stem": encoder.stem} | {f"block {index + 1}": block for index, block in enumerate(blocks)}

    def prepare(self, data: ImageData | ClientData) -> None:
        """Check that the data fit the model, before training starts.

        Raises:
            ValueError: They do not fit.
        """
        for samples in (data.eval_test, data.pool):
            samples.check_encoder(self.model.encoder.spec)
        self.model.method.check_labels(data.pool.labels)

    def export(self, folder: Path) -> None:
        """Write the encoder: one of images for timm, one of text for ``layerwise.CausalTransformerSpec``."""
        encoder = self.model.encoder
        training = self.progress.as_dict() if self.progress else None
        if self.augment:
            export_encoder(encoder, folder, list(self.augment.mean), list(self.augment.std), training)
        else:
            export_text_encoder(encoder, folder, training)
