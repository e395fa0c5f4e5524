"""What federated and centralised pretraining share: a model, its evaluation, its random twin."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fedssl.data.clients import ClientData
from fedssl.data.images import ImageData
from fedssl.protocol.parts import MethodFactory, SplitModel, build_model
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
        encoder: The encoder to build.
        method: The objective.
        augment: Makes two views of a batch of images; its mean and std also normalise images for evaluation. ``None``
            for text.
        optimizer: The optimizer of local (or centralised) training.
        evaluation: Neighbours and probe; a language model has none, its perplexity is evaluated.
        finetuning: Fine-tunes a copy in the final evaluation; ``None`` does not.
        seed: Seed of every random choice; ``None`` takes the run's.

    Attributes:
        progress: How far ``fit`` came; ``None`` before it.
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
        # In a tuple, so that it is in no checkpoint; read now, since the file may be gone when training ends.
        self._start = (("start", build_encoder(encoder, derive_seed(seed, "encoder"))),) if encoder.weights else ()

    def build(self) -> SplitModel:
        """A freshly initialised model; equal at every call."""
        return build_model(*self._recipe)

    @property
    def summary(self) -> dict[str, str]:
        """Scheme and method, for tables and results."""
        return {"scheme": "centralized", "method": type(self.model.method).__name__}

    def normalize(self, images: Tensor) -> Tensor:
        """As in training, without augmentation."""
        assert self.augment is not None
        return self.augment.plain(images)

    def classify(self, images: Tensor) -> Tensor | None:
        """Class scores of the classifier that was trained with the encoder, if the method has one."""
        return self.model.classify(images)

    def nats(self, texts: Tensor) -> Tensor | None:
        """Of every character that a language model predicts."""
        return self.model.method.nats(self.model.encoder, texts)

    def on_fit_end(self) -> None:
        """Lightning's hook; notes how far training came, while the Trainer still knows."""
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
        """Lightning's hook; notes what wrote the checkpoint."""
        checkpoint[ORIGIN] = origin(training=type(self).__name__)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook; before any weight is overwritten.

        Raises:
            ValueError: The checkpoint is not of a run like this one.
        """
        try:
            check_origin(checkpoint)
        except UnusableStateError as error:
            raise ValueError(f"the checkpoint {error}") from error
        check_same(checkpoint[ORIGIN], {"training": type(self).__name__})
        check_network(checkpoint["state_dict"], self.state_dict())

    def untrained(self) -> dict[str, nn.Module]:
        """The encoder at random initialisation, at the depth this one has now; and with the weights that were loaded.

        The loaded one is whole, since it might have been used as it was.
        """
        spec, seed = self._recipe[0], derive_seed(self.seed, "encoder")
        random_init = build_encoder(replace(spec, weights=None), seed)
        random_init.depth = self.model.encoder.depth
        return dict(self._start) | {"random_init": random_init}

    def layers(self, encoder: nn.Module) -> dict[str, nn.Module]:
        """The stem and every present block."""
        assert isinstance(encoder, StagedEncoder)
        blocks = encoder.blocks[: encoder.depth]
        return {"stem": encoder.stem} | {f"block {index + 1}": block for index, block in enumerate(blocks)}

    def prepare(self, data: ImageData | ClientData) -> None:
        """Checks that the data fit the model; called before training starts.

        Raises:
            ValueError: They do not.
        """
        for samples in (data.eval_test, data.pool):
            samples.check_encoder(self.model.encoder.spec)
        self.model.method.check_labels(data.pool.labels)

    def export(self, folder: Path) -> None:
        """Writes the encoder: images for timm, text for :class:`layerwise.CausalTransformerSpec`."""
        encoder = self.model.encoder
        training = self.progress.as_dict() if self.progress else None
        if self.augment:
            export_encoder(encoder, folder, list(self.augment.mean), list(self.augment.std), training)
        else:
            export_text_encoder(encoder, folder, training)
