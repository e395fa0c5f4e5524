"""What federated and centralised pretraining share: a model, its evaluation, its random twin."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from fedssl.client_data import ClientData
from fedssl.data import ImageData
from fedssl.export import export_encoder, export_text_encoder
from fedssl.model import MethodFactory, SplitModel, build_model
from fedssl.seeding import derive_seed, run_seed
from fedssl.stopwatch import Stopwatch
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

    def random_init(self) -> nn.Module:
        """An encoder at random initialisation, at the depth this one has now."""
        encoder = build_encoder(replace(self._recipe[0], weights=None), derive_seed(self.seed, "encoder"))
        encoder.depth = self.model.encoder.depth
        return encoder

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
        if self.augment:
            export_encoder(encoder, folder, list(self.augment.mean), list(self.augment.std))
        else:
            export_text_encoder(encoder, folder)
