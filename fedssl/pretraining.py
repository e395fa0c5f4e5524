"""What federated and centralised pretraining share: a model, its evaluation, its random twin."""

from __future__ import annotations

from torch import Tensor, nn

from fedssl.data import ImageData
from fedssl.datasets import ImageSet
from fedssl.model import MethodFactory, SplitModel, build_model
from fedssl.seeding import derive_seed, run_seed
from fedssl.stopwatch import Stopwatch
from layerwise import EncoderSpec, StagedEncoder, build_encoder
from linear_eval import EvaluatedModule, EvaluationSettings, FinetuneSettings
from ssl_methods import OptimizerFactory, TwoViews


class Pretraining(EvaluatedModule):
    """Base of the modules that the command line trains.

    Args:
        encoder: The encoder to build.
        method: The self-supervised objective.
        augment: Makes two views of a batch of images; its mean and std also normalise images for evaluation.
        optimizer: The optimizer of local (or centralised) training.
        evaluation: Neighbours and probe.
        finetuning: Fine-tunes a copy in the final evaluation; ``None`` does not.
        seed: Seed of every random choice; ``None`` takes the run's.
    """

    def __init__(
        self,
        encoder: EncoderSpec,
        method: MethodFactory,
        augment: TwoViews,
        optimizer: OptimizerFactory,
        evaluation: EvaluationSettings = EvaluationSettings(),  # noqa: B008 (frozen)
        finetuning: FinetuneSettings | None = None,
        seed: int | None = None,
    ) -> None:
        seed = run_seed(seed)
        self._recipe = (encoder, method, augment, optimizer, seed)
        model = self.build()
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
        return self.augment.plain(images)

    def classify(self, images: Tensor) -> Tensor | None:
        """Class scores of the classifier that was trained with the encoder, if the method has one."""
        return self.model.classify(images)

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
        """The encoder before training, at the depth it has now."""
        encoder = build_encoder(self._recipe[0], derive_seed(self.seed, "encoder"))
        encoder.depth = self.model.encoder.depth
        return encoder

    def layers(self, encoder: nn.Module) -> dict[str, nn.Module]:
        """The stem and every present block."""
        assert isinstance(encoder, StagedEncoder)
        blocks = encoder.blocks[: encoder.depth]
        return {"stem": encoder.stem} | {f"block {index + 1}": block for index, block in enumerate(blocks)}

    def prepare(self, data: ImageData) -> None:
        """Checks that the data fit the model; called before training starts.

        Raises:
            ValueError: They do not.
        """
        self.check_images(data.eval_train)
        self.check_images(data.pool)
        self.model.method.check_labels(data.pool.labels)

    def check_images(self, images: ImageSet) -> None:
        """Compares images with what the encoder was built for.

        Raises:
            ValueError: Size or channels differ.
        """
        spec = self.model.encoder.spec
        if images.image_size != spec.image_size:
            raise ValueError(
                f"{images.name} images have {images.image_size} pixels a side, the encoder expects "
                f"{spec.image_size}: set --data.image_size {spec.image_size} or --model.encoder.image_size"
            )
        if images.channels != spec.in_channels:
            raise ValueError(
                f"{images.name} images have {images.channels} channels, the encoder expects "
                f"{spec.in_channels}: set --data.channels {spec.in_channels} or --model.encoder.in_channels"
            )
