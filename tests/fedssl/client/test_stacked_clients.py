"""Clients with stacked weights end a run as clients one after the other do, up to rounding."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.optim import SGD, AdamW, RMSprop

from fedssl.client.stacked_clients import check_stackable
from fedssl.client.start import FedEMA
from fedssl.data.datasets import ArrayImages
from fedssl.federation.federation import Federation
from fedssl.federation.settings import FederationSettings
from fedssl.protocol.compression import TopK
from fedssl.server.aggregation import SCAFFOLD
from fedssl.server.rounds import RoundReport
from fedssl.training.process_engine import ProcessEngine
from layerwise import EncoderSpec, EndToEnd, LayerWise, Progressive
from ssl_methods import DigitsViews
from ssl_methods.alignment import GlobalAlignment, MoonAlignment

SIZES = (7, 7, 8, 7, 1, 7)
Run = tuple[list[RoundReport], dict[str, torch.Tensor], list[dict[str, Any]]]


@pytest.fixture
def run(
    make_settings: Callable[..., FederationSettings], noise: Any, snapshot: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Run]:
    """Runs three rounds in double precision, and gives their reports, the weights and the costs of all clients.

    In single precision batch norms of three images blow rounding up beyond any useful bound.
    """
    build, views = FederationSettings.build, DigitsViews.__call__

    def build_double(self: FederationSettings) -> Any:
        model = build(self)
        model.encoder.double(), model.method.double()
        return model

    monkeypatch.setattr(FederationSettings, "build", build_double)
    monkeypatch.setattr(DigitsViews, "__call__", lambda *args: tuple(view.double() for view in views(*args)))

    def run(at_once: int, local: dict[str, Any] | None = None, **settings: Any) -> Run:
        own = {"batch_size": 4, "clients_at_once": at_once} | (local or {})
        made = make_settings(local=own, **{"optimizer": partial(SGD, lr=0.01, momentum=0.9)} | settings)
        model = made.build()
        check_stackable(model.method, made.model.optimizer(model.method.parameters()))
        federation = Federation(made, SIZES, model=model)
        size = made.model.encoder.input_shape[-1]
        engine = ProcessEngine(federation.client, [noise(images, 1 + i, size) for i, images in enumerate(SIZES)])
        reports = [federation.round(engine) for _ in range(3)]
        return reports, snapshot(federation.server.model), federation.server.ledger.state_dict()

    return run


def assert_equal(one: Run, together: Run) -> None:
    for alone, stacked in zip(one[0], together[0], strict=True):
        assert stacked.loss == pytest.approx(alone.loss, rel=1e-6)
        assert (stacked.trained, stacked.failures) == (alone.trained, alone.failures)
        assert (stacked.macs, stacked.activation_bytes) == (alone.macs, alone.activation_bytes)
    torch.testing.assert_close(together[1], one[1], rtol=1e-5, atol=1e-8)
    assert one[2] == together[2]


@pytest.mark.parametrize(
    ("method", "scheme"),
    [
        ("SimCLR", LayerWise()),
        pytest.param("BYOL", Progressive(), marks=pytest.mark.slow),
        pytest.param("MoCoV3", EndToEnd(), marks=pytest.mark.slow),
    ],
)
def test_stacked_clients_train_as_single_ones(method: str, scheme: Any, run: Callable[..., Run]) -> None:
    assert_equal(run(1, method=method, scheme=scheme), run(4, method=method, scheme=scheme))


def test_adam_steps_every_client_by_itself(run: Callable[..., Run]) -> None:
    optimizer = partial(AdamW, lr=0.001, eps=1e-4)  # with a small epsilon rounding would turn the signs of first steps
    assert_equal(run(1, optimizer=optimizer), run(6, optimizer=optimizer))


def test_alignment_corrections_and_lost_changes_are_those_of_each_client(run: Callable[..., Run]) -> None:
    def trained(at_once: int) -> Run:
        local = {"alignment": GlobalAlignment(), "compression": TopK(0.5)}
        return run(at_once, local, server={"aggregation": SCAFFOLD()})

    assert_equal(trained(1), trained(3))


def test_batch_norms_in_the_encoder_keep_their_statistics_apart(
    run: Callable[..., Run], resnet_spec: EncoderSpec
) -> None:
    assert_equal(run(1, spec=resnet_spec, scheme=EndToEnd()), run(4, spec=resnet_spec, scheme=EndToEnd()))


def test_a_client_that_diverges_fails_alone(run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    views = DigitsViews.__call__
    calls = iter(range(10_000))

    def broken(self: DigitsViews, images: torch.Tensor, generator: torch.Generator) -> Any:
        made = views(self, images, generator)
        return tuple(view * float("nan") for view in made) if next(calls) == 9 else made

    monkeypatch.setattr(DigitsViews, "__call__", broken)
    reports, _, _ = run(4)
    assert [len(report.failures) for report in reports] == [2, 1, 1]
    reasons = {failure.reason for report in reports for failure in report.failures}
    assert any("loss nan after" in reason for reason in reasons)


def test_an_error_of_one_client_leaves_the_others_of_its_stack(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    gather = ArrayImages.gather

    def unreadable(self: ArrayImages, indices: torch.Tensor) -> torch.Tensor:
        if self.name == "noise 2":
            raise OSError("unreadable")
        return gather(self, indices)

    monkeypatch.setattr(ArrayImages, "gather", unreadable)
    reports, _, _ = run(4)
    assert [report.trained for report in reports] == [(0, 2, 3, 5)] * 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": partial(RMSprop, lr=0.1)}, "the optimizer RMSprop may mix clients"),
        ({"local": {"proximal": 0.1}}, "proximal treats each on its own"),
        ({"local": {"gradient_clip_norm": 1.0}}, "gradient_clip_norm treats each on its own"),
        ({"local": {"start": FedEMA()}}, "start treats each on its own"),
        ({"local": {"alignment": MoonAlignment()}}, "alignment MoonAlignment treats each on its own"),
        ({"spec": EncoderSpec("resnet18", 16, 1, options={"drop_path_rate": 0.1})}, "dropout layers would draw"),
    ],
)
def test_what_cannot_be_stacked_is_refused(settings: dict[str, Any], message: str, run: Callable[..., Run]) -> None:
    with pytest.raises(ValueError, match=message):
        run(2, **settings)
