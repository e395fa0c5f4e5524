"""Settings of a federated run, in the groups that its parts need."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

from torch.optim import SGD, Optimizer

from fedssl.client.bank import ActivationBank
from fedssl.client.local_step import LocalStep
from fedssl.client.stacked_clients import check_stackable
from fedssl.client.start import StartRule
from fedssl.costs.prediction import StepPredictor
from fedssl.devices import Deadline, DeviceSource
from fedssl.memory_budget.setting import MemoryBudget
from fedssl.protocol.compression import Compression
from fedssl.protocol.parts import MethodFactory, PartitionedModel, build_model
from fedssl.server.aggregation import Aggregation, WeightedMean
from fedssl.server.calibration import Calibration
from fedssl.server.lr_schedule import LRSchedule
from fedssl.server.participation import check_dropout
from fedssl.server.selection import Selector
from fedssl.server.updates import MAX_UPDATE, check_max_update
from layerwise import BlockPerturbation, Scheme, StagedSpec
from ssl_methods import OptimizerFactory, SSLMethod, TwoViews, check_at_least, check_optimizer
from ssl_methods.alignment import LARGEST_WEIGHT, Alignment


def sgd(parameters: Any) -> Optimizer:
    """SGD with learning rate 1, which makes the server step plain FedAvg."""
    return SGD(parameters, lr=1.0)


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Network, objective and clients' optimizer.

    Args:
        encoder: Architecture of the encoder.
        method: Objective.
        augment: Augmentation that makes two views of a batch of images; ``None`` for text.
        optimizer: Optimizer of local training.
        micro_batch: Images that the encoder takes at a time in a step; ``None``: all.
        heads: File or folder with the heads to start from; ``None``: new ones.
    """

    encoder: StagedSpec
    method: MethodFactory
    augment: TwoViews | None
    optimizer: OptimizerFactory
    micro_batch: int | None = None
    heads: str | None = None

    def build(self, seed: int) -> PartitionedModel:
        """Build a freshly initialised model; equal seeds give equal weights."""
        model = build_model(self.encoder, self.method, self.augment, self.optimizer, seed, heads=self.heads)
        return model.in_micro_batches(self.micro_batch)


@dataclass(frozen=True, kw_only=True)
class LocalSettings:
    """Local training.

    Args:
        epochs: Epochs of a round.
        batch_size: Images a step.
        alignment: Representation alignment; ``None`` switches it off.
        proximal: mu of the FedProx term; 0 switches it off.
        lr_schedule: Learning rate over the rounds.
        gradient_clip_norm: Largest L2 norm of a step's gradient, corrections included; ``None``: no limit.
        start: Weights that clients start a round from; ``None``: the global ones.
        bank: Clients train from stored outputs of the frozen prefix; ``None``: they run it in every step.
        memory: Memory budget of a step.
        compression: Packs what clients send; ``None`` sends the weights.
        clients_at_once: Most clients that a process trains together, with stacked weights.
    """

    epochs: int = 1
    batch_size: int = 64
    alignment: Alignment | None = None
    proximal: float = 0.0
    lr_schedule: LRSchedule = LRSchedule()  # noqa: RUF009 (frozen)
    gradient_clip_norm: float | None = None
    start: StartRule | None = None
    bank: ActivationBank | None = None
    memory: MemoryBudget = MemoryBudget()  # noqa: RUF009 (frozen)
    compression: Compression | None = None
    clients_at_once: int = 1

    def __post_init__(self) -> None:
        check_at_least(1, local_epochs=self.epochs, clients_at_once=self.clients_at_once)
        check_at_least(2, batch_size=self.batch_size)
        check_at_least(0, LARGEST_WEIGHT, proximal=self.proximal)
        if self.gradient_clip_norm is not None and not 0 < self.gradient_clip_norm < math.inf:
            raise ValueError(f"gradient_clip_norm must be above 0, got {self.gradient_clip_norm}; null sets no limit")
        if self.memory != MemoryBudget() and self.bank:
            raise ValueError(
                "a memory_budget plans steps that run the frozen prefix: leave out the bank, or the budget"
            )
        if self.clients_at_once > 1:
            self._check_together()

    def _check_together(self) -> None:
        """Refuse what treats each client on its own."""
        remembers = self.alignment and type(self.alignment).remember is not Alignment.remember
        own = {
            "memory_budget": self.memory != MemoryBudget(),
            "bank": self.bank,
            "start": self.start,
            "proximal": self.proximal,
            "gradient_clip_norm": self.gradient_clip_norm,
            f"alignment {type(self.alignment).__name__}": remembers,
        }
        for name in (name for name, given in own.items() if given):
            raise ValueError(
                f"clients_at_once {self.clients_at_once} stacks the weights of clients, and {name} treats each on its "
                "own: leave out one of them"
            )


@dataclass(frozen=True, kw_only=True)
class CohortSettings:
    """The clients that take part, and their devices.

    Args:
        participation: Clients a round: an ``int`` is a number, a ``float`` a fraction of all.
        dropout: Probability that a selected client cannot be reached.
        selector: Selects each round's clients; ``None`` draws them at random.
        devices: Devices of the clients; ``None``: no limits, and no virtual clock.
        deadline: Deadline of every round on the virtual clock; needs ``devices``.
    """

    participation: int | float = 1.0
    dropout: float = 0.0
    selector: Selector | None = None
    devices: DeviceSource | None = None
    deadline: Deadline | None = None

    def __post_init__(self) -> None:
        check_dropout(self.dropout)
        if self.deadline and not self.devices:
            raise ValueError("a deadline needs devices, whose speed says who is late: set model.devices")


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What the server does with updates.

    Args:
        aggregation: Rule that combines the clients' updates.
        max_update: Largest change of a tensor that a client may give, see ``fedssl.server.updates``.
        optimizer: Steps the global model along ``global - aggregate``.
        calibration: Server-side calibration on auxiliary images; ``None`` switches it off.
        pace: Freezes blocks as soon as they have converged; ``None`` never does.
        measure_distance: Measure how far the local models of a round are apart.
    """

    # Made anew each time: a rule holds the sums of its round, which two runs must not share.
    aggregation: Aggregation = field(default_factory=WeightedMean)
    max_update: float = MAX_UPDATE
    optimizer: OptimizerFactory = sgd
    calibration: Calibration | None = None
    pace: BlockPerturbation | None = None
    measure_distance: bool = False

    def __post_init__(self) -> None:
        check_optimizer("server_optimizer", self.optimizer)
        if self.measure_distance and self.aggregation.always_steps:
            raise ValueError(
                f"aggregation {type(self.aggregation).__name__} hides what clients gave; their distance would tell: "
                "leave out --model.measure_distance"
            )
        check_max_update(self.max_update)


@dataclass(frozen=True, kw_only=True)
class FederationSettings:
    """All settings of a federated run.

    Args:
        model: Network, objective and clients' optimizer.
        scheme: Cuts the run into stages.
        rounds: Communication rounds of the run, at most.
        local: Local training.
        cohort: The clients that take part.
        server: What the server does with updates.
        seed: Seed of every random choice.
    """

    model: ModelSettings
    scheme: Scheme
    rounds: int
    local: LocalSettings = LocalSettings()
    cohort: CohortSettings = CohortSettings()
    server: ServerSettings = field(default_factory=ServerSettings)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.local.memory != MemoryBudget() and self.model.micro_batch:
            raise ValueError(
                f"a memory_budget plans whole batches: leave out micro_batch {self.model.micro_batch}, or the budget"
            )
        if self.local.clients_at_once > 1 and self.model.micro_batch:
            raise ValueError("clients_at_once stacks whole batches of clients: leave it at 1, or leave out micro_batch")
        rule = self.server.aggregation
        rule.check_optimizer(check_optimizer("optimizer", self.model.optimizer))
        if rule.needs_proximal and self.local.proximal != rule.needs_proximal:
            raise ValueError(
                f"aggregation {type(rule).__name__} needs clients with its own proximal term, they have "
                f"{self.local.proximal}: set --model.proximal={rule.needs_proximal}, or choose another "
                "--model.aggregation"
            )
        if self.local.start and rule.corrects:
            raise ValueError(
                f"aggregation {type(rule).__name__} corrects gradients for clients that start from the global weights, "
                f"not for {type(self.local.start).__name__}: leave out start, or choose another --model.aggregation"
            )

    def build(self) -> PartitionedModel:
        """Build a freshly initialised model; every call gives the same weights."""
        return self.model.build(self.seed)

    def predictor(self, model: PartitionedModel | None = None) -> StepPredictor:
        """Return a predictor of local steps with a model of its own, or one that takes over the given model."""
        local, corrected = self.local, self.server.aggregation.corrects
        # A copy: attaching points an alignment at one model, and the resident client's must stay at its own.
        step = LocalStep(
            copy.deepcopy(local.alignment),
            local.proximal,
            corrected,
            local.gradient_clip_norm,
            keeps_received=local.compression is not None,
        )
        return StepPredictor(model or self.build(), step, local.bank)

    def check(self, model: PartitionedModel) -> None:
        """Refuse settings that do not suit the built model.

        Raises:
            ValueError: Scheme, start rule, alignment or bank do not suit it.
        """
        method, local = model.method, self.local
        self.scheme.check(model.encoder)
        self.scheme.stages(len(model.encoder.blocks), self.rounds)
        if local.clients_at_once > 1:
            check_stackable(method, check_optimizer("optimizer", self.model.optimizer))
        if local.start:
            local.start.check(model.heads)
        if local.alignment and not isinstance(method, SSLMethod):
            raise ValueError(f"alignment compares views: {type(method).__name__} has none, leave it out")
        if local.bank and method.modality != "images":
            raise ValueError(f"a bank stores views of images: {type(method).__name__} has none, leave it out")
        if local.bank and method.num_views > 2:
            name, number = type(method).__name__, method.num_views
            raise ValueError(f"a bank stores two kinds of views: {name} has {number} views, leave it out")
        if local.bank and method.dense:
            raise ValueError(f"a bank stores features of whole views: {type(method).__name__} has none, leave it out")
