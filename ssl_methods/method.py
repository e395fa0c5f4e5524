"""What every self-supervised objective shares: one Lightning module over one backbone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from ssl_methods.augment import TwoViews
from ssl_methods.losses import check_momentum
from ssl_methods.twin import Twin

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
Views = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class StepOutput:
    """What one step of a method gives.

    Args:
        loss: Scalar to minimise.
        projections: Online projections (B, D) of the two views, for further loss terms.
    """

    loss: Tensor
    projections: Views


class SSLMethod(LightningModule):
    """A self-supervised objective over ``backbone``; it knows nothing of clients, stages or rounds.

    Used alone it is an ordinary Lightning module whose batches are uint8 images (B, C, H, W), or (images,
    labels) with the labels ignored. For layer-wise training :meth:`attach` puts a frozen ``prefix`` in front:
    it runs once per view without gradient, and online branch, target branch and further loss terms all start
    from its output. That is exact, because frozen layers are the same in every branch.

    Args:
        backbone: Maps images, or the prefix's output, to features (B, feature_dim).
        feature_dim: Width of the features.
        augment: Makes two views of a batch of images.
        optimizer: Makes an optimizer for a list of parameters.

    Attributes:
        loss_terms: Further losses of a step, functions of (prefix outputs of both views, step output).
        generator: Source of the augmentation's random numbers.
        views_in_paper: Views of a sample that LW-FedSSL's resource figures count: two, but one with a target branch.
    """

    projector: nn.Module
    views_in_paper: ClassVar[int] = 2

    def __init__(self, backbone: nn.Module, feature_dim: int, augment: TwoViews, optimizer: OptimizerFactory) -> None:
        super().__init__()
        self.prefix: nn.Module = nn.Sequential()
        self.backbone = backbone
        self.feature_dim = feature_dim
        self.augment = augment
        self.optimizer_factory = optimizer
        self.loss_terms: list[Callable[[Views, StepOutput], Tensor]] = []
        self.generator = torch.Generator()

    @abstractmethod
    def heads(self) -> dict[str, nn.Module]:
        """The heads that are trained with the backbone, by name."""

    @abstractmethod
    def step(self, hidden: Views) -> StepOutput:
        """The objective.

        Args:
            hidden: Both views after the prefix, each (B, ...).
        """

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

    def online(self) -> nn.Sequential:
        """Backbone and projector as one branch."""
        return nn.Sequential(self.backbone, self.projector)

    def trained(self) -> list[nn.Parameter]:
        """Parameters of the backbone and all heads."""
        modules = [self.backbone, *self.heads().values()]
        return [parameter for module in modules for parameter in module.parameters()]

    def train(self, mode: bool = True) -> SSLMethod:
        """Training mode for all but the prefix, whose batch norms must not move."""
        super().train(mode)
        self.prefix.eval()
        return self

    def training_step(self, batch: Any, batch_idx: int = 0) -> Tensor | None:
        """Loss of one batch; ``None`` for fewer than two images, which cannot be contrasted."""
        images = batch[0] if isinstance(batch, tuple | list) else batch
        if len(images) < 2:
            return None
        return self.loss_of(self.augment(images, self.generator))

    def loss_of(self, views: Views) -> Tensor:
        """Loss of two views, further loss terms included; prefix outputs are computed once for all of them."""
        first, second = views
        with torch.no_grad():
            hidden = (self.prefix(first), self.prefix(second))
        output = self.step(hidden)
        return sum((term(hidden, output) for term in self.loss_terms), output.loss)

    def configure_optimizers(self) -> Optimizer:
        """A fresh optimizer over the trained parameters."""
        return self.optimizer_factory(self.trained())

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


class MomentumMethod(SSLMethod):
    """A method with a target branch that follows the online branch (BYOL, MoCo v3).

    Args:
        backbone: Maps the input to features (B, feature_dim).
        feature_dim: Width of the features.
        augment: Makes the two views.
        optimizer: Makes the optimizer.
        momentum: Of the target branch, 0 to 1.
    """

    views_in_paper = 1

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        augment: TwoViews,
        optimizer: OptimizerFactory,
        momentum: float,
    ) -> None:
        super().__init__(backbone, feature_dim, augment, optimizer)
        self.momentum = check_momentum(momentum)
        self.target: Twin | None = None

    def attach(self, prefix: nn.Module, backbone: nn.Module) -> None:
        """As in the base class; the target is built anew for the new active part only."""
        self.target = None
        super().attach(prefix, backbone)

    def start(self) -> None:
        """Target := online (LW-FedSSL algorithm 2: anew in every round)."""
        if self.target is None:
            self.target = Twin(self.online())
        else:
            self.target.reset(self.online())

    def after_step(self) -> None:
        """Target := momentum * target + (1 - momentum) * online."""
        assert self.target is not None
        self.target.follow(self.online(), self.momentum)
