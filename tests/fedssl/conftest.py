"""A tiny federation: a ViT of three blocks of width 16 on grey images of 8x8, driven by hand."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from fake_card import Card, CardGenerator, replace_tensors
from torch import Tensor, nn
from torch.optim import SGD

from fedssl.client.bank import ActivationBank
from fedssl.client.local_update import LocalUpdate
from fedssl.client.start import StartRule
from fedssl.costs.fake_step import StepPrediction
from fedssl.costs.prediction import StepPredictor
from fedssl.data.datasets import ArrayImages
from fedssl.devices import Deadline, DeviceProfile, DeviceSource
from fedssl.federation.federation import Engine, Federation
from fedssl.federation.settings import (
    CohortSettings,
    FederationSettings,
    LocalSettings,
    ModelSettings,
    ServerSettings,
    sgd,
)
from fedssl.protocol.compression import Compression
from fedssl.protocol.messages import Failure, Result, Task, flatten
from fedssl.protocol.parts import PartitionedModel, build_model
from fedssl.server.aggregation import Aggregation, WeightedMean
from fedssl.server.calibration import Calibration
from fedssl.server.lr_schedule import LRSchedule
from fedssl.server.participation import Cohort
from fedssl.server.rounds import RoundReport
from fedssl.server.selection import Selector
from fedssl.server.server import Server
from layerwise import BlockPerturbation, EncoderSpec, LayerWise, Scheme, Stage, StagedSpec
from ssl_methods import BYOL, DINO, MAE, BarlowTwins, DigitsViews, MoCoV3, SimCLR, SimSiam, Supervised, TwoViews, VICReg
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
PREDICTED: dict[tuple[Any, ...], StepPrediction] = {}
METHODS: dict[str, Callable[..., Any]] = {
    "SimCLR": partial(SimCLR, hidden_dim=16, output_dim=8, projector_layers=2),
    "BYOL": partial(BYOL, hidden_dim=16, output_dim=8, projector_layers=2),
    "BarlowTwins": partial(BarlowTwins, hidden_dim=16, output_dim=8),
    "DINO": partial(DINO, hidden_dim=16, output_dim=8, bottleneck_dim=8),
    "MAE": partial(MAE, decoder_dim=8, decoder_blocks=1, decoder_heads=2),
    "SimSiam": partial(SimSiam, hidden_dim=16, output_dim=8),
    "VICReg": partial(VICReg, hidden_dim=16, output_dim=8),
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
    spec: StagedSpec = VIT,
    seed: int = 0,
    augment: TwoViews | None = None,
    optimizer: Callable[..., Any] = CLIENT_OPTIMIZER,
) -> PartitionedModel:
    """An encoder with small heads; equal arguments give equal weights."""
    factory = METHODS[method] if isinstance(method, str) else method
    return build_model(
        spec, factory, augment or (DigitsViews() if spec.modality == "images" else None), optimizer, seed
    )


def weights_of(model: PartitionedModel) -> dict[str, Tensor]:
    """A copy of all tensors, by part and name."""
    return {key: tensor.clone() for key, tensor in flatten(model.read(model.parts)).items()}


class InTurn(Engine):
    """Trains one client after the other in the resident model."""

    def __init__(self, local: LocalUpdate, clients: Sequence[ArrayImages]) -> None:
        self._local, self._clients = local, clients

    def connect(self, server: Server) -> None: ...

    def train(self, server: Server, cohort: Cohort) -> Iterator[Result | Failure]:
        return (self._local(server.make_task(client), self._clients[client]) for client in cohort.participants)


class World:
    """A federation and everybody's images."""

    def __init__(self, federation: Federation, clients: list[ArrayImages]) -> None:
        self.federation, self.clients = federation, clients
        self.server, self.local = federation.server, federation.client

    def results(self, cohort: Cohort) -> Iterator[Result | Failure]:
        """Trains a cohort."""
        return InTurn(self.local, self.clients).train(self.server, cohort)

    def round(self, step: Callable[[], Any] | None = None) -> RoundReport:
        """One communication round."""
        return self.federation.round(InTurn(self.local, self.clients), step)

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
        own = flatten(self.server.model.read(self.server.model.parts))
        for key, tensor in checkpoint["weights"].items():
            own[key].copy_(tensor)
        self.server.optimizer.load_state_dict(checkpoint["optimizer"])
        self.server.load_state_dict(checkpoint["server"])
        self.local.load_state_dict(checkpoint["local"])


def small_settings(
    scheme: Scheme | None = None,
    rounds: int = 3,
    method: str | Callable[..., Any] = "SimCLR",
    spec: EncoderSpec = VIT,
    optimizer: Callable[..., Any] = CLIENT_OPTIMIZER,
    augment: TwoViews | None = None,
    seed: int = 0,
    local: dict[str, Any] | None = None,
    cohort: dict[str, Any] | None = None,
    server: dict[str, Any] | None = None,
) -> FederationSettings:
    """Settings of a tiny federation; batches have 4 images."""
    factory = METHODS[method] if isinstance(method, str) else method
    return FederationSettings(
        model=ModelSettings(encoder=spec, method=factory, augment=augment or DigitsViews(), optimizer=optimizer),
        scheme=scheme or LayerWise(),
        rounds=rounds,
        local=LocalSettings(**{"batch_size": 4} | (local or {})),
        cohort=CohortSettings(**cohort or {}),
        server=ServerSettings(**server or {}),
        seed=seed,
    )


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
    lr_schedule: LRSchedule = LRSchedule(),  # noqa: B008 (frozen)
    gradient_clip_norm: float | None = None,
    epochs: int = 1,
    seed: int = 0,
    augment: TwoViews | None = None,
    bank: ActivationBank | None = None,
    compression: Compression | None = None,
) -> World:
    """A federation of clients of the given sizes."""
    local = {"epochs": epochs, "alignment": copy.copy(alignment), "proximal": proximal, "start": start, "bank": bank}
    local |= {"lr_schedule": lr_schedule, "gradient_clip_norm": gradient_clip_norm, "compression": compression}
    cohort = {"participation": cohort_size or len(sizes), "dropout": dropout, "selector": selector}
    cohort |= {"devices": Given(devices) if devices else None, "deadline": deadline}
    server = {"aggregation": aggregation or WeightedMean(), "optimizer": server_optimizer}
    server |= {"calibration": calibration, "pace": pace}
    settings = small_settings(scheme, rounds, method, spec, optimizer, augment, seed, local, cohort, server)
    images = random_images(auxiliary, 999, spec.image_size) if calibration else None
    federation = Federation(settings, sizes, auxiliary=images)
    federation.check_devices()
    return World(federation, [random_images(size, 1 + i, spec.image_size) for i, size in enumerate(sizes)])


class Given(DeviceSource):
    """Devices that a test names one by one."""

    def __init__(self, profiles: list[DeviceProfile]) -> None:
        self._profiles = profiles

    def profiles(self, num_clients: int, seed: int) -> list[DeviceProfile]:
        return self._profiles


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
def make_model() -> Callable[..., PartitionedModel]:
    return small_model


@pytest.fixture
def snapshot() -> Callable[[PartitionedModel], dict[str, Tensor]]:
    return weights_of


@pytest.fixture
def make_settings() -> Callable[..., FederationSettings]:
    return small_settings


@pytest.fixture
def make_world() -> Callable[..., Any]:
    return make_small_world


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    monkeypatch.setattr(torch, "Generator", CardGenerator)
    monkeypatch.setattr(nn.Module, "_apply", replace_tensors)
    yield Card()
    gc.collect()  # graphs of fake tensors crash the process if they are freed amid an operation on others


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


@pytest.fixture(autouse=True)
def shared_predictions(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Predicts the step of one model, stage and batch size once for all tests but those of the prediction itself."""
    if {"costs", "memory_budget"} & set(request.path.parts):
        return
    predict = StepPredictor._run_or_infer

    def shared(self: StepPredictor, stage: Stage, batch_size: int) -> StepPrediction:
        if not hasattr(self, "alike"):
            self.alike = _structure(self)  # type: ignore[attr-defined]
        key = (self.alike, stage, batch_size)  # type: ignore[attr-defined]
        if key not in PREDICTED:
            PREDICTED[key] = predict(self, stage, batch_size)
        return PREDICTED[key]

    monkeypatch.setattr(StepPredictor, "_run_or_infer", shared)


def _structure(predictor: StepPredictor) -> tuple[Any, ...]:
    """Everything that the cost of a step depends on, but its stage and batch size."""
    model, step = predictor.model, predictor.step
    method, factory = model.method, model.method.optimizer_factory
    # Named by what it says if it is a class with settings; anything else stands for itself.
    optimizer = repr(factory) if isinstance(factory, partial) and isinstance(factory.func, type) else factory
    shapes = tuple((name, key, t.shape) for name, part in model.parts.items() for key, t in part.state_dict().items())
    settings = {name: value for name, value in vars(method).items() if isinstance(value, bool | int | float | str)}
    kind = (type(method), repr(sorted(settings.items())), optimizer, model.micro_batch, repr(model.encoder.spec))
    terms = type(step.alignment), bool(step.proximal), step.corrected, step.keeps_received
    return shapes, kind, terms, repr(predictor.bank)
