"""The server's round as on a GPU, with fake tensors on a card that need not exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fake_card import CUDA, Card
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim import SGD, AdamW

from fedssl.federation.federation import Federation
from fedssl.protocol.compression import BFloat16, Compression, EightBit, TopK, pack_update
from fedssl.protocol.messages import Result
from fedssl.server.aggregation import (
    LDAWA,
    SCAFFOLD,
    Aggregation,
    CoordinateMedian,
    FedNova,
    Krum,
    NormWeightedMean,
    PrivateMean,
    StragglerMean,
    TrimmedMean,
    WeightedMean,
)
from fedssl.server.calibration import Calibration
from fedssl.server.global_step import AggregatedStep
from fedssl.server.participation import Participation
from fedssl.training.process_engine import ProcessEngine
from layerwise import BlockPerturbation, HeterogeneousLoRA, LayerWise, Scheme

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
RULES = [FedNova(), LDAWA(), StragglerMean(), TrimmedMean(), CoordinateMedian(), Krum(1), SCAFFOLD()]


@pytest.fixture(autouse=True)
def contents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contents have one id, as there are none to hash."""
    for module in ("fedssl.protocol.parts", "fedssl.server.aggregation.private_mean"):
        monkeypatch.setattr(f"{module}.content_id", lambda tensors: "content")


@pytest.fixture
def take_in(make_model: Callable[..., Any], vit_spec: Any, card: Card) -> Callable[..., None]:
    """Gives five updates to a rule, in the last of three stages, and steps the model; all of it on the card."""

    def take(rule: Aggregation, scheme: Scheme = LayerWise(), **settings: Any) -> None:  # noqa: B008
        model = make_model(spec=scheme.adapt(vit_spec))
        names = model.trained_names(scheme.stages(3, 3)[-1])
        rule.check_optimizer(SGD(model.method.parameters(), lr=0.1))
        with card:
            model.to(CUDA)
            optimizer = AdamW([p for part in model.parts.values() for p in part.parameters()])
            step = AggregatedStep(model, rule, optimizer, **settings)
            step.begin(Participation([4] * 5), 3)
            updates = step.begin_round(names)
            for client in range(5):
                step.correction(client, names)
                parts = model.read(names)
                if step.compression:
                    parts, _ = pack_update(step.compression, parts, parts, model.parameters(names).keys(), {})
                card.waits.clear()
                checked = updates.check(Result(client, parts, 4, 1.0, 1.0, 0, 0, 1), names)
                assert card.waits.count("_to_copy") == 1, "the figures of all tensors are fetched at once"
                updates.take(checked)
            assert updates.trained == list(range(5)), updates.reasons()
            step.finish(updates, 0)
            card.waits.clear()
            step.check_finite(0)
            assert card.waits == ["_local_scalar_dense"]
        states = [value for state in optimizer.state.values() for value in state.values() if value.dim()]
        assert states
        assert all(isinstance(each, FakeTensor) and each.device == CUDA for each in states)

    return take


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_rules_aggregate_on_the_card(rule: Aggregation, take_in: Callable[..., None]) -> None:
    take_in(rule)


def test_adapters_are_aggregated_on_the_card(take_in: Callable[..., None]) -> None:
    take_in(NormWeightedMean(), HeterogeneousLoRA([2]))


def test_noise_comes_to_the_card(take_in: Callable[..., None]) -> None:
    pytest.importorskip("dp_accounting")
    take_in(PrivateMean(clip=1.0, noise_multiplier=5.0))


@pytest.mark.parametrize("compression", [BFloat16(), EightBit(), TopK()], ids=lambda rule: type(rule).__name__)
def test_updates_are_unpacked_on_the_card(compression: Compression, take_in: Callable[..., None]) -> None:
    take_in(WeightedMean(), compression=compression, measure_distance=True)


def test_a_round_runs_on_the_card(make_settings: Callable[..., Any], noise: Any, card: Card) -> None:
    server = {"calibration": Calibration(epochs=1, batch_size=4), "pace": BlockPerturbation()}
    settings = make_settings(method="BYOL", local={"compression": EightBit()}, server=server)
    model = settings.build()
    with card:
        model.to(CUDA)
    federation = Federation(settings, [4, 4], model=model, auxiliary=noise(4))
    client = federation.client.model
    with card:
        client.to(CUDA)
        engine = ProcessEngine(federation.client, [noise(4), noise(4, 1)])
        report = federation.round(engine)
    assert report.trained == (0, 1)
    tensors = [*model.encoder.parameters(), *client.encoder.parameters()]
    assert all(isinstance(tensor, FakeTensor) and tensor.device == CUDA for tensor in tensors)
