"""What every training objective shares: one Lightning module over one backbone, frozen layers in front."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from ssl_methods.setting_checks import check_optimizer

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
Inputs = tuple[Tensor, ...]


class Augmentation(Protocol):
    """Makes views of a batch of images, as :class:`ssl_methods.augment.TwoViews` does."""

    def __call__(self, images: Tensor, generator: torch.Generator, /) -> tuple[Tensor, Tensor]:
        """Two views (B, ...) of images (B, ...)."""

    def first(self, images: Tensor, generator: torch.Generator, /) -> Tensor:
        """The first view only."""


@dataclass(frozen=True)
class StepOutput:
    """What one step of a method gives.

    Args:
        loss: Scalar to minimise.
        projections: What the heads made of the inputs, for further loss terms: online projections (B, D) of the two
            views of a self-supervised method, logits (B, classes) of a supervised one.
    """

    loss: Tensor
    projections: Inputs


class Method(LightningModule):
    """An objective over ``backbone``; it knows nothing of clients, stages or rounds.

    Used alone it is an ordinary Lightning module whose batches are (uint8 images (B, C, H, W), labels (B,)), or images
    only where no labels are needed; where text is trained on, pieces (B, T + 1) take their place. For layer-wise
    training :meth:`attach` puts a frozen ``prefix`` in front: it runs without gradient, and every branch and further
    loss term starts from its output. That is exact, because frozen layers are the same in every branch.

    Args:
        backbone: Maps images, or the prefix's output, to features (B, feature_dim).
        feature_dim: Width of the features.
        augment: Makes two views of a batch of images.
        optimizer: Makes an optimizer for a list of parameters.

    Raises:
        ValueError: There is no ``augment``, or the optimizer cannot train.

    Attributes:
        modality: What it is trained on, ``images`` or ``text``.
        loss_terms: Further losses of a step, functions of (prefix outputs, step output).
        corrections: Parameters, each with a tensor that is added to its gradient before every optimizer step.
        generator: Source of the augmentation's random numbers.
        views_in_paper: Views of a sample that LW-FedSSL's resource figures count.
    """

    modality: ClassVar[str] = "images"
    views_in_paper: ClassVar[int]

    def __init__(
        self, backbone: nn.Module, feature_dim: int, augment: Augmentation | None, optimizer: OptimizerFactory
    ) -> None:
        super().__init__()
        check_optimizer("optimizer", optimizer)
        if augment is None:
            raise ValueError(
                f"{type(self).__name__} trains on views of images: set augment, to NaturalViews for example"
            )
        self.prefix: nn.Module = nn.Sequential()
        self.backbone = backbone
        self.feature_dim = feature_dim
        self.augment = augment
        self.optimizer_factory = optimizer
        self.loss_terms: list[Callable[[Any, StepOutput], Tensor]] = []
        self.corrections: list[tuple[nn.Parameter, Tensor]] = []
        self.generator = torch.Generator()

    @abstractmethod
    def heads(self) -> dict[str, nn.Module]:
        """The heads that are trained with the backbone, by name."""

    def state_parts(self) -> dict[str, nn.Module]:
        """Modules whose tensors no optimizer trains but steps move, by name: a running centre of outputs.

        They travel and are saved with the heads; the server averages them as it does batch norm's statistics.
        """
        return {}

    def client_state(self) -> list[nn.Module]:
        """Modules whose tensors stay on a client and have their initial values at the start of each of its rounds.

        A queue of features is one: no client may see another's.
        """
        return []

    @abstractmethod
    def inputs(self, images: Tensor, labels: Tensor) -> Inputs:
        """What a step needs of a batch, augmented.

        Args:
            images: uint8 (B, C, H, W).
            labels: int64 (B,), -1 where there is none.
        """

    @abstractmethod
    def run_prefix(self, inputs: Inputs) -> Inputs:
        """What the active part gets: :meth:`inputs` with every view after the prefix, which runs without gradient."""

    @abstractmethod
    def loss_of(self, inputs: Inputs) -> Tensor:
        """Loss of what :meth:`inputs` made, further loss terms included."""

    @abstractmethod
    def example_inputs(self, shape: tuple[int, ...]) -> Inputs:
        """Tensors without meaningful values, as :meth:`inputs` makes them for an encoder whose input has this shape."""

    def check_encoder(self, spec: Any) -> None:
        """Whether the objective can train an encoder.

        Args:
            spec: What the encoder was built from; has ``name`` and ``modality``.

        Raises:
            ValueError: It cannot.
        """
        if spec.modality != self.modality:
            raise ValueError(
                f"{type(self).__name__} trains on {self.modality}, but the encoder {spec.name} is for {spec.modality}"
            )

    def check_labels(self, labels: Tensor) -> None:
        """Whether the objective can be trained with these labels; by default any will do.

        Raises:
            ValueError: It cannot.
        """

    def classify(self, features: Tensor) -> Tensor | None:
        """Class scores (B, classes) of features (B, feature_dim); ``None`` if the objective trains no classifier."""
        return None

    def token_nll(self, encoder: nn.Module, samples: Tensor) -> Tensor | None:
        """Negative log-likelihood (N,) of what the objective predicts of samples; ``None`` if it is no likelihood.

        Args:
            encoder: The whole encoder.
            samples: As in training.
        """
        return None

    def attach(self, prefix: nn.Module, backbone: nn.Module) -> None:
        """Trains ``backbone`` from now on, on top of the frozen ``prefix``; the heads stay."""
        self.prefix = prefix.requires_grad_(False)
        self.backbone = backbone.requires_grad_(True)
        self.train()
        self.start()

    def start(self) -> None:
        """Called when the online branch was replaced: momentum targets become copies of it."""

    def after_step(self) -> None:
        """Called after each optimizer step: momentum targets follow."""

    def trained(self) -> list[nn.Parameter]:
        """Parameters of the backbone and all heads, without what is frozen between trained layers."""
        modules = [self.backbone, *self.heads().values()]
        return [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]

    def train(self, mode: bool = True) -> Method:
        """Training mode for all but the prefix, whose batch norms must not move."""
        super().train(mode)
        self.prefix.eval()
        return self

    def training_step(self, batch: Any, batch_idx: int = 0) -> Tensor | None:
        """Loss of one batch; ``None`` for fewer than two images, which cannot be contrasted."""
        images, labels = batch if isinstance(batch, tuple | list) else (batch, None)
        if len(images) < 2:
            return None
        if labels is None:
            labels = torch.full((len(images),), -1, device=images.device)
        return self.loss_of(self.inputs(images, labels))

    def configure_optimizers(self) -> Optimizer:
        """Makes a fresh optimizer over the trained parameters; it corrects their gradients before it steps."""
        optimizer = self.optimizer_factory(self.trained())
        if self.corrections:
            optimizer.register_step_pre_hook(self._correct)
        return optimizer

    def setup(self, stage: str) -> None:
        """Lightning's hook; momentum targets exist before a checkpoint is loaded into them."""
        self.start()

    def on_train_epoch_start(self) -> None:
        """Lightning's hook; every epoch has its own augmentation, derived from the global seed."""
        self.generator.manual_seed(torch.initial_seed() + self.current_epoch)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's hook."""
        super().optimizer_step(*args, **kwargs)
        self.after_step()

    @torch.no_grad()
    def _correct(self, *_: Any) -> None:
        for parameter, correction in self.corrections:
            if parameter.grad is not None:
                parameter.grad.add_(correction)

    def _with_terms(self, hidden: Inputs, output: StepOutput) -> Tensor:
        return sum((term(hidden, output) for term in self.loss_terms), output.loss)
