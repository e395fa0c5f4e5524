"""A tiny federation: a ViT of three blocks of width 16 on grey images of 8x8, driven by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from fedssl.client.bank import ActivationBank
from fedssl.client.local_update import LocalUpdate
from fedssl.client.start import StartRule
from fedssl.costs.fake_step import StepPrediction
from fedssl.costs.forecast import Forecast
from fedssl.costs.prediction import StepPredictor
from fedssl.data.datasets import ArrayImages
from fedssl.devices import Deadline, DeviceProfile, Fleet
from fedssl.protocol.messages import Failure, Result, Task, flatten
from fedssl.protocol.parts import SplitModel, build_model
from fedssl.server.aggregation import Aggregation, WeightedMean
from fedssl.server.calibration import Calibration
from fedssl.server.participation import Cohort, Participation
from fedssl.server.rounds import RoundReport
from fedssl.server.selection import Selector
from fedssl.server.server import Server
from fedssl.training.federated import sgd
from layerwise import BlockPerturbation, EncoderSpec, LayerWise, Scheme, Stage
from ssl_methods import BYOL, BarlowTwins, DigitsViews, MoCoV3, SimCLR, Supervised, TwoViews, check_optimizer
from ssl_methods.alignment import Alignment

VIT = EncoderSpec(
    "vit_tiny_patch16_224",
    8,
    1,
    "sincos",
    {
        "patch_size": 4,
        "depth": 3,
        "embed_dim": 16,
        "num_heads": 2,
        "global_pool": "avg",
        "class_token": False,
    },
)
RESNET = EncoderSpec("resnet18", 16, 1, options={"channels": (8, 8, 16, 16)})
CLIENT_OPTIMIZER = partial(SGD, lr=0.01)
PREDICTED: dict[str, dict[tuple[Stage, int], StepPrediction]] = {}
METHODS: dict[str, Callable[..., Any]] = {
    "SimCLR": partial(SimCLR, hidden_dim=16, output_dim=8, projector_layers=2),
    "BYOL": partial(BYOL, hidden_dim=16, output_dim=8, projector_layers=2),
    "BarlowTwins": partial(BarlowTwins, hidden_dim=16, output_dim=8),
    "MoCoV3": partial(MoCoV3, temperature=0.2, hidden_dim=16, output_dim=8, projector_layers=2),
    "Supervised": partial(Supervised, num_classes=3),
}


def random_images(number: int, seed: int = 0, size: int = 8) -> ArrayImages:
    """Noise; the labels 0 to 2 in turn."""
    pixels = torch.randint(
        0, 256, (number, 1, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    return ArrayImages(f"noise {seed}", pixels, torch.arange(number) % 3, ("a", "b", "c"))


def small_model(
    method: str | Callable[..., Any] = "SimCLR",
    spec: EncoderSpec = VIT,
    seed: int = 0,
    augment: TwoViews | None = None,
    optimizer: Callable[..., Any] = CLIENT_OPTIMIZER,
) -> SplitModel:
    """An encoder with small heads; equal arguments give equal weights."""
    factory = METHODS[method] if isinstance(method, str) else method
    return build_model(spec, factory, augment or DigitsViews(), optimizer, seed)


def weights_of(model: SplitModel) -> dict[str, Tensor]:
    """A copy of all tensors, by part and name."""
    return {key: tensor.clone() for key, tensor in flatten(model.read(model.modules)).items()}


@dataclass
class World:
    """A server, its resident client and everybody's images."""

    server: Server
    local: LocalUpdate
    clients: list[ArrayImages]

    def results(self, cohort: Cohort) -> Iterator[Result | Failure]:
        """Trains one client after the other in one model."""
        for client in cohort.participants:
            yield self.local(self.server.make_task(client), self.clients[client])

    def round(self, step: Callable[[], Any] | None = None) -> RoundReport:
        """One communication round."""
        return self.server.absorb(self.results(self.server.begin_round()), step)

    def run(self, rounds: int) -> list[RoundReport]:
        """Several rounds."""
        return [self.round() for _ in range(rounds)]

    def tasks(self, rounds: int = 1) -> list[Task]:
        """The tasks of the round after ``rounds`` further ones, as they would arrive over a network."""
        self.run(rounds)
        return [copy.deepcopy(self.server.make_task(client)) for client in self.server.begin_round().participants]

    def weights(self) -> dict[str, Tensor]:
        """A copy of the global tensors."""
        return weights_of(self.server.model)

    def checkpoint(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        return {
            "weights": self.weights(),
            "server": self.server.state_dict(),
            "local": self.local.state_dict(),
            "optimizer": self.server.optimizer.state_dict(),
        }

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Continues from a checkpoint of another world."""
        own = flatten(self.server.model.read(self.server.model.modules))
        for key, tensor in checkpoint["weights"].items():
            own[key].copy_(tensor)
        self.server.optimizer.load_state_dict(checkpoint["optimizer"])
        self.server.load_state_dict(checkpoint["server"])
        self.local.load_state_dict(checkpoint["local"])


def make_small_world(
    scheme: Scheme | None = None,
    rounds: int = 3,
    sizes: Sequence[int] = (4, 9, 8),
    method: str | Callable[..., Any] = "SimCLR",
    spec: EncoderSpec = VIT,
    optimizer: Callable[..., Any] = CLIENT_OPTIMIZER,
    server_optimizer: Callable[..., Any] = sgd,
    aggregation: Aggregation | None = None,
    cohort_size: int | None = None,
    dropout: float = 0.0,
    selector: Selector | None = None,
    devices: list[DeviceProfile] | None = None,
    deadline: Deadline | None = None,
    pace: BlockPerturbation | None = None,
    start: StartRule | None = None,
    calibration: Calibration | None = None,
    auxiliary: int = 6,
    alignment: Alignment | None = None,
    proximal: float = 0.0,
    epochs: int = 1,
    seed: int = 0,
    augment: TwoViews | None = None,
    bank: ActivationBank | None = None,
) -> World:
    """A federation of clients of the given sizes."""
    model, resident = (small_model(method, spec, seed, augment, optimizer) for _ in range(2))
    aggregation = aggregation or WeightedMean()
    aggregation.check_optimizer(check_optimizer("optimizer", optimizer))
    fleet = None
    if devices:
        planned = small_model(method, spec, seed, augment, optimizer)
        predictor = StepPredictor(planned, copy.copy(alignment), proximal, bank, aggregation.corrects)
        forecast = Forecast(planned, predictor, epochs, 4)
        fleet = Fleet(devices, list(sizes), forecast, deadline)
    server = Server(
        model,
        scheme or LayerWise(),
        rounds,
        Participation(sizes, cohort_size or len(sizes), dropout, selector, fleet, seed),
        aggregation,
        server_optimizer(list(dict.fromkeys(p for module in model.modules.values() for p in module.parameters()))),
        calibration,
        random_images(auxiliary, 999, spec.image_size) if calibration else None,
        pace,
        seed,
    )
    local = LocalUpdate(
        resident,
        epochs,
        4,
        copy.copy(alignment),
        proximal,
        start,
        seed,
        lambda name, content: model.read([name])[name],
        bank=bank,
    )
    clients = [random_images(size, 1 + i, spec.image_size) for i, size in enumerate(sizes)]
    return World(server, local, clients)


@pytest.fixture(scope="session")
def vit_spec() -> EncoderSpec:
    return VIT


@pytest.fixture(scope="session")
def resnet_spec() -> EncoderSpec:
    return RESNET


@pytest.fixture(scope="session")
def methods() -> dict[str, Callable[..., Any]]:
    return METHODS


@pytest.fixture
def noise() -> Callable[..., ArrayImages]:
    return random_images


@pytest.fixture
def make_model() -> Callable[..., SplitModel]:
    return small_model


@pytest.fixture
def snapshot() -> Callable[[SplitModel], dict[str, Tensor]]:
    return weights_of


@pytest.fixture
def make_world() -> Callable[..., Any]:
    return make_small_world


@pytest.fixture
def plan_cohorts(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Fixes who takes part in each of the coming rounds."""

    def plan(*participants: tuple[int, ...], clients: int = 3) -> None:
        rounds = iter(participants)

        def draw(*_: Any) -> Cohort:
            present = next(rounds)
            return Cohort(present, tuple(c for c in range(clients) if c not in present))

        monkeypatch.setattr("fedssl.server.participation.Participation.draw", draw)

    return plan


@pytest.fixture
def shared_predictions(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Where all worlds have equal models: each of their steps is predicted once for all tests of a module."""
    predict, known = StepPredictor.__call__, PREDICTED.setdefault(request.module.__name__, {})

    def shared(self: StepPredictor, stage: Stage, batch_size: int) -> StepPrediction:
        if (stage, batch_size) not in known:
            known[stage, batch_size] = predict(self, stage, batch_size)
        return known[stage, batch_size]

    monkeypatch.setattr(StepPredictor, "__call__", shared)
