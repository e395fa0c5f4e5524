"""Base of all training objectives: a Lightning module over one backbone, with frozen layers in front."""

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
    """Source of views of a batch of images, such as :class:`ssl_methods.augment.TwoViews`."""

    def __call__(self, images: Tensor, generator: torch.Generator, /) -> tuple[Tensor, Tensor]:
        """Draw two views (B, ...) of images (B, ...)."""

    def first(self, images: Tensor, generator: torch.Generator, /) -> Tensor:
        """Draw the first view only."""


@dataclass(frozen=True)
class Foundation:
    """Foundation of a method: everything that a trainer gives to it, besides its own settings.

    Args:
        backbone: Maps inputs, or the prefix's output, to features (B, feature_dim).
        feature_dim: Width of the features.
        augment: Makes views of a batch of images; ``None`` for text.
        optimizer: Makes an optimizer for a list of parameters.
    """

    backbone: nn.Module
    feature_dim: int
    augment: Augmentation | None
    optimizer: OptimizerFactory


@dataclass(frozen=True)
class StepOutput:
    """Output of one step of a method.

    Args:
        loss: Scalar to minimise.
        projections: Outputs of the heads for further loss terms: online projections (B, D) of every view of a
            self-supervised method, logits (B, classes) of a supervised one.
    """

    loss: Tensor
    projections: Inputs


class Method(LightningModule):
    """Training objective over ``backbone``; it knows nothing of schemes, servers or other clients.

    Used alone it is an ordinary Lightning module whose batches are (uint8 images (B, C, H, W), labels (B,)), or images
    only where no labels are needed; where text is trained on, pieces (B, T + 1) take their place. For layer-wise
    training :meth:`attach` puts a frozen ``prefix`` in front: it runs without gradient, and every branch and further
    loss term starts from its output. That is exact, because frozen layers are the same in every branch.

    A subclass has at least :meth:`heads` and :meth:`step`.

    Args:
        foundation: Backbone, augmentation and optimizer.

    Raises:
        ValueError: Images have no augmentation, text has one, or the optimizer cannot train.

    Attributes:
        modality: Kind of samples, ``images`` or ``text``.
        num_views: Number of inputs that pass the network, such as views of an image; targets may follow them.
        loss_terms: Further losses of a step, functions of (views after the prefix, step output).
        corrections: Parameters, each with a tensor that is added to its gradient before every optimizer step.
        clip_norm: Largest L2 norm of all gradients together, corrections included; longer ones are scaled down to it
            before every optimizer step. ``None``: no limit.
        generator: Source of the augmentation's random numbers.
        dense: True if the features of an image are those of every token (B, T, feature_dim), without pooling.
        views_in_paper: Views of a sample that LW-FedSSL's resource figures count.
    """

    modality: ClassVar[str] = "images"
    num_views: int = 1
    dense: ClassVar[bool] = False
    views_in_paper: ClassVar[int] = 1

    def __init__(self, foundation: Foundation) -> None:
        super().__init__()
        check_optimizer("optimizer", foundation.optimizer)
        check_augment(self, foundation.augment)
        self.prefix: nn.Module = nn.Sequential()
        self.backbone = foundation.backbone
        self.feature_dim = foundation.feature_dim
        self.augment = foundation.augment
        self.optimizer_factory = foundation.optimizer
        self.loss_terms: list[Callable[[Any, StepOutput], Tensor]] = []
        self.corrections: list[tuple[nn.Parameter, Tensor]] = []
        self.clip_norm: float | None = None
        self.generator = torch.Generator()

    @abstractmethod
    def heads(self) -> dict[str, nn.Module]:
        """Return the heads that are trained with the backbone, by name."""

    def state_parts(self) -> dict[str, nn.Module]:
        """Return modules whose tensors no optimizer trains but steps move, by name: a running centre of outputs.

        They travel and are saved with the heads; the server averages them as it does batch norm's statistics.
        """
        return {}

    def client_state(self) -> list[nn.Module]:
        """Return modules whose tensors stay on a client and are reset at the start of each of its rounds.

        A queue of features is one: no client may see another's.
        """
        return []

    def inputs(self, images: Tensor, labels: Tensor) -> Inputs:
        """Make the inputs of a step: by default views, the augmentation's first and second kind in turn.

        Args:
            images: uint8 (B, C, H, W).
            labels: int64 (B,), -1 where there is none.

        Returns:
            ``num_views`` tensors for the network, then targets of any number.
        """
        assert self.augment is not None
        views = [view for _ in range(self.num_views // 2) for view in self.augment(images, self.generator)]
        return (*views, self.augment.first(images, self.generator)) if self.num_views % 2 else tuple(views)

    def example_inputs(self, shape: tuple[int, ...]) -> Inputs:
        """Make tensors without meaningful values, such as :meth:`inputs` makes for an encoder with this input shape."""
        return tuple(torch.empty(shape) for _ in range(self.num_views))

    @torch.no_grad()
    def run_prefix(self, inputs: Inputs) -> Inputs:
        """Replace the views among the inputs by the prefix's outputs; targets stay."""
        return (*(self.prefix(view) for view in inputs[: self.num_views]), *inputs[self.num_views :])

    @abstractmethod
    def step(self, hidden: Inputs) -> StepOutput:
        """Compute the objective.

        Args:
            hidden: Inputs after :meth:`run_prefix`; call ``self.backbone`` on the views.
        """

    def loss_of(self, inputs: Inputs) -> Tensor:
        """Compute the loss, further loss terms included; all branches and terms share one pass of the prefix."""
        hidden = self.run_prefix(inputs)
        output = self.step(hidden)
        return sum((term(hidden[: self.num_views], output) for term in self.loss_terms), output.loss)

    def check_encoder(self, spec: Any) -> None:
        """Refuse an encoder that the objective cannot train.

        Args:
            spec: Recipe of the encoder; has ``name`` and ``modality``.

        Raises:
            ValueError: The encoder is for other samples.
        """
        if spec.modality != self.modality:
            raise ValueError(
                f"{type(self).__name__} trains on {self.modality}, but the encoder {spec.name} is for {spec.modality}"
            )

    def check_labels(self, labels: Tensor) -> None:
        """Refuse labels that the objective cannot be trained with; by default none.

        Raises:
            ValueError: The labels do not fit.
        """

    def classify(self, features: Tensor) -> Tensor | None:
        """Return class scores (B, classes) of features (B, feature_dim); ``None`` without a trained classifier."""
        return None

    def token_nll(self, encoder: nn.Module, samples: Tensor) -> Tensor | None:
        """Return the negative log-likelihood (N,) of every predicted token; ``None`` unless it is a language model.

        Args:
            encoder: Whole encoder.
            samples: Texts (B, T + 1).
        """
        return None

    def attach(self, prefix: nn.Module, backbone: nn.Module) -> None:
        """Train ``backbone`` from now on, on top of the frozen ``prefix``; the heads stay."""
        self.prefix = prefix.requires_grad_(False)
        self.backbone = backbone.requires_grad_(True)
        # Blocks that were in an earlier prefix are still in evaluation mode.
        self.train()
        self.begin_client()

    def begin_client(self) -> None:
        """Follow a replaced online branch, at the start of a client's round: momentum targets become copies of it."""

    def after_step(self) -> None:
        """Follow the online branch after an optimizer step: momentum targets move."""

    def trained(self) -> list[nn.Parameter]:
        """Return the parameters of backbone and heads, without those that are frozen between trained layers."""
        modules = [self.backbone, *self.heads().values()]
        # Each once, or an optimizer would step a weight that a head shares with the backbone twice.
        parameters = dict.fromkeys(parameter for module in modules for parameter in module.parameters())
        return [parameter for parameter in parameters if parameter.requires_grad]

    def train(self, mode: bool = True) -> Method:
        """Set the training mode of all but the prefix, whose batch norms must not move."""
        super().train(mode)
        self.prefix.eval()
        return self

    def training_step(self, batch: Any, batch_idx: int = 0) -> Tensor | None:
        """Compute the loss of one batch; ``None`` for fewer than two images, which cannot be contrasted."""
        images, labels = batch if isinstance(batch, tuple | list) else (batch, None)
        if len(images) < 2:
            return None
        if labels is None:
            labels = torch.full((len(images),), -1, device=images.device)
        return self.loss_of(self.inputs(images, labels))

    def configure_optimizers(self) -> Optimizer:
        """Make a fresh optimizer over the trained parameters; it corrects and clips gradients before it steps."""
        optimizer = self.optimizer_factory(self.trained())
        if self.corrections:
            optimizer.register_step_pre_hook(self._correct)
        if self.clip_norm is not None:
            optimizer.register_step_pre_hook(self._clip)
        return optimizer

    def setup(self, stage: str) -> None:
        """Lightning's hook; momentum targets exist before a checkpoint is loaded into them."""
        self.begin_client()

    def on_train_epoch_start(self) -> None:
        """Lightning's hook; every epoch has its own augmentation, derived from the global seed."""
        self.generator = torch.Generator(self.device).manual_seed(torch.initial_seed() + self.current_epoch)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's hook."""
        super().optimizer_step(*args, **kwargs)
        self.after_step()

    @torch.no_grad()
    def _correct(self, *_: Any) -> None:
        for parameter, correction in self.corrections:
            if parameter.grad is not None:
                parameter.grad.add_(correction)

    def _clip(self, *_: Any) -> None:
        assert self.clip_norm is not None
        nn.utils.clip_grad_norm_(self.trained(), self.clip_norm)


def check_augment(method: Method, augment: Augmentation | None) -> None:
    """Refuse images without an augmentation, and text with one.

    Raises:
        ValueError: The augmentation does not fit the method's modality.
    """
    if method.modality == "images" and augment is None:
        raise ValueError(f"{type(method).__name__} trains on views of images: set augment, to NaturalViews for example")
    if method.modality == "text" and augment is not None:
        raise ValueError(f"augment {type(augment).__name__} makes views of images, text has none: leave it out")
