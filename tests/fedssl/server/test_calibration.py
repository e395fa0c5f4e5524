"""Server-side calibration."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import pytest
import torch
from torch.optim import SGD

from fedssl.client.training_loop import NonFiniteLossError
from fedssl.protocol.messages import flatten
from fedssl.server.calibration import Calibration
from layerwise import LayerWise
from ssl_methods import StepOutput, Views

STAGES = LayerWise().stages(3, 6)


def changed_parts(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {key.split("/")[0] for key in before if not torch.equal(before[key], after[key])}


@pytest.mark.parametrize(
    ("method", "stage"), [*(("SimCLR", stage) for stage in STAGES), ("BYOL", STAGES[1]), ("MoCoV3", STAGES[1])]
)
def test_all_present_layers_move_and_no_absent_ones(
    stage: Any, method: str, make_model: Callable[..., Any], noise: Callable[..., Any], snapshot: Any
) -> None:
    model = make_model(method)
    before = snapshot(model)
    report = Calibration(epochs=1, batch_size=4).run(model, stage, noise(8), 0, seed=0)
    present = {"stem", "tail", *model.heads, *(f"block.{i}" for i in stage.present)}
    assert changed_parts(before, snapshot(model)) == present
    assert report.steps == 2
    assert math.isfinite(report.loss)


def test_every_tensor_of_the_frozen_prefix_is_trained(
    make_model: Callable[..., Any], noise: Callable[..., Any], snapshot: Any
) -> None:
    model = make_model()
    model.attach(STAGES[2])
    before = snapshot(model)
    Calibration(epochs=1, batch_size=4).run(model, STAGES[2], noise(8), 0, seed=0)
    after = snapshot(model)
    frozen = flatten(model.read(model.frozen_names(STAGES[2])))
    assert len(frozen) == 3 + 2 * 12
    assert all(not torch.equal(before[key], after[key]) for key in frozen)


def test_result_follows_seed_and_round_only(
    make_model: Callable[..., Any], noise: Callable[..., Any], snapshot: Any
) -> None:
    def calibrated(seed: int, round_: int) -> torch.Tensor:
        model = make_model()
        Calibration(batch_size=4, epochs=2).run(model, STAGES[1], noise(8), round_, seed)
        return torch.cat([tensor.flatten().float() for tensor in snapshot(model).values()])

    state = torch.get_rng_state()
    first = calibrated(3, 5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(first, calibrated(3, 5))
    assert not torch.equal(first, calibrated(3, 6))
    assert not torch.equal(first, calibrated(4, 5))


def test_own_optimizer_is_honoured_and_the_clients_one_comes_back(
    make_model: Callable[..., Any], noise: Callable[..., Any], snapshot: Any
) -> None:
    made = []

    def still(parameters: Any) -> SGD:
        parameters = list(parameters)
        made.append(len(parameters))
        return SGD(parameters, lr=1e-30)

    model = make_model()
    clients, before = model.method.optimizer_factory, snapshot(model)
    Calibration(epochs=1, batch_size=4, optimizer=still).run(model, STAGES[0], noise(8), 0, seed=0)
    assert made[1:] == [3 + 12 + 2 + 6]  # the first was made to look at
    assert model.method.optimizer_factory is clients
    assert all(
        "running" in key or "num_batches" in key
        for key in before
        if not torch.allclose(before[key], snapshot(model)[key], atol=1e-20)
    )


def test_without_an_own_optimizer_it_takes_the_clients_one(
    make_model: Callable[..., Any], noise: Callable[..., Any], snapshot: Any
) -> None:
    slow, fast = (make_model(optimizer=partial(SGD, lr=lr)) for lr in (1e-30, 0.1))
    before = snapshot(slow)
    for model in (slow, fast):
        Calibration(epochs=1, batch_size=4).run(model, STAGES[0], noise(8), 0, seed=0)
    assert torch.allclose(snapshot(slow)["stem/model.pos_embed"], before["stem/model.pos_embed"], atol=1e-20)
    assert not torch.equal(snapshot(fast)["stem/model.pos_embed"], before["stem/model.pos_embed"])


def test_nan_is_an_error_and_the_clients_optimizer_comes_back(
    make_model: Callable[..., Any], methods: dict[str, Any], noise: Callable[..., Any]
) -> None:
    class Broken(methods["SimCLR"].func):  # type: ignore[misc]
        def step(self, hidden: Views) -> StepOutput:
            output = super().step(hidden)
            return StepOutput(output.loss * math.nan, output.projections)

    model = make_model(Broken)
    clients = model.method.optimizer_factory
    with pytest.raises(NonFiniteLossError, match="loss nan"):
        Calibration(epochs=1, batch_size=4, optimizer=partial(SGD, lr=1.0)).run(model, STAGES[0], noise(8), 0, seed=0)
    assert model.method.optimizer_factory is clients


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "calibration.epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "calibration.batch_size must be at least"),
        ({"when": "never"}, "calibration.when must be 'round' or 'stage', got 'never'"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Calibration(**settings)


# --- in the course of a run


@pytest.mark.parametrize(
    ("when", "rounds"), [("round", [True] * 6), ("stage", [False, True, False, True, False, True])]
)
def test_when(when: Literal["round", "stage"], rounds: list[bool], make_world: Callable[..., Any]) -> None:
    world = make_world(rounds=6, sizes=(4, 4), calibration=Calibration(batch_size=4, when=when))
    losses = [report.calibration_loss for report in world.run(6)]
    assert [loss is not None for loss in losses] == rounds
    assert all(math.isfinite(loss) for loss in losses if loss is not None)


def test_frozen_layers_move_between_rounds_only_with_calibration(make_world: Callable[..., Any]) -> None:
    moved = {}
    for name, calibration in (("on", Calibration(batch_size=4)), ("off", None)):
        world = make_world(rounds=6, sizes=(4, 4), calibration=calibration)
        world.run(4)
        before = world.weights()
        world.round()
        moved[name] = changed_parts(before, world.weights())
    assert moved["off"] == {"block.2", "tail", "head.projector"}
    assert moved["on"] == moved["off"] | {"stem", "block.0", "block.1"}


def test_epochs_and_batch_are_the_clients_unless_set(make_world: Callable[..., Any]) -> None:
    world = make_world(epochs=2, calibration=Calibration(when="stage"))
    assert world.server.calibration == Calibration(2, 4, "stage")
    assert make_world(calibration=Calibration(3, 8)).server.calibration == Calibration(3, 8)


def test_clients_optimizer_survives_a_run(make_world: Callable[..., Any]) -> None:
    own = Calibration(batch_size=4, optimizer=partial(SGD, lr=0.01))
    world = make_world(sizes=(4, 4), calibration=own)
    world.round()
    assert world.server.model.method.optimizer_factory.keywords == {"lr": 0.01}


@pytest.mark.parametrize("auxiliary", [0, 1])
def test_calibration_needs_images(auxiliary: int, make_world: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"calibration needs auxiliary images .* set auxiliary_fraction"):
        make_world(calibration=Calibration(), auxiliary=auxiliary)


def test_a_failing_calibration_ends_the_run(make_world: Callable[..., Any]) -> None:
    world = make_world(
        sizes=(4, 4), calibration=Calibration(optimizer=partial(SGD, lr=0.1, weight_decay=1e38), epochs=3)
    )
    with pytest.raises(NonFiniteLossError):
        world.round()
