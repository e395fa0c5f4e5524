"""FedU and FedEMA: what clients start from."""

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fedssl.client.start import FedEMA, FedU, StartRule, encoder_divergence, mix
from layerwise import EndToEnd, LayerWise

RULES = [FedU(1e-4), FedEMA()]


def weights(matrix: list[list[float]], predictor: float, counter: int = 3) -> dict[str, Tensor]:
    return {
        "block.0/w": torch.tensor(matrix),
        "block.0/bias": torch.full((2,), 7.0 * predictor),
        "head.projector/w": torch.tensor([[1.0, 1.0]]),
        "head.predictor/w": torch.full((1, 2), predictor),
        "head.predictor/steps": torch.tensor(counter),
    }


def starts_of(world: Any) -> dict[int, dict[str, Tensor]]:
    """Makes the world note the weights with which each client begins to train."""
    seen: dict[int, dict[str, Tensor]] = {}
    train = world.local._train

    def noted(task: Any, *arguments: Any) -> Any:
        tensors = world.local.model.read(task.active)
        seen[task.client_id] = {f"{p}/{k}": t.clone() for p, part in tensors.items() for k, t in part.items()}
        return train(task, *arguments)

    world.local._train = noted
    return seen


# --- by hand


def test_divergence_by_hand() -> None:
    """Distances 5 and 0 of two matrices; vectors and the predictor are left out."""
    received, own = weights([[3.0, 0.0], [0.0, 4.0]], 0.0), weights([[0.0, 0.0], [0.0, 0.0]], 100.0)
    assert encoder_divergence(received, own) == 2.5
    assert encoder_divergence(received, received) == 0.0
    vectors = {"block.0/bias": torch.ones(2)}
    assert encoder_divergence(vectors, {"block.0/bias": torch.zeros(2)}) == 0.0


def test_mixing_leaves_integers_global() -> None:
    assert torch.equal(mix(torch.tensor([0.0, 4.0]), torch.tensor([8.0, 0.0]), 0.25), torch.tensor([2.0, 3.0]))
    assert mix(torch.tensor(4), torch.tensor(9), 0.9).item() == 4


@pytest.mark.parametrize(("threshold", "local"), [(2.4, True), (2.5, True), (2.6, False), (0.0, True)])
def test_fedu_keeps_the_predictor_of_a_far_encoder(threshold: float, local: bool) -> None:
    received, own = weights([[3.0, 0.0], [0.0, 4.0]], 1.0, 3), weights([[0.0, 0.0], [0.0, 0.0]], 2.0, 9)
    start = FedU(threshold).begin_client(received, own, {})
    assert list(start) == list(received)
    for key, tensor in start.items():
        source = own if local and key.startswith("head.predictor/") else received
        assert torch.equal(tensor, source[key]), key


def test_fedema_by_hand() -> None:
    """The first use sets lambda to 0.7 / 2.5 = 0.28; a divergence of 0.5 then gives a share of 0.14."""
    rule, notes = FedEMA(0.7), {}
    received, own = weights([[3.0, 0.0], [0.0, 4.0]], 1.0, 3), weights([[0.0, 0.0], [0.0, 0.0]], 2.0, 9)
    first = rule.begin_client(received, own, notes)
    assert notes == {"lambda": pytest.approx(0.28)}
    assert torch.allclose(first["block.0/w"], 0.3 * received["block.0/w"])
    assert torch.allclose(first["block.0/bias"], torch.full((2,), 7.0 * 1.7))
    assert torch.allclose(first["head.predictor/w"], torch.full((1, 2), 1.7))
    assert first["head.predictor/steps"].item() == 3
    near = weights([[3.0, 1.0], [0.0, 4.0]], 2.0)
    second = rule.begin_client(received, near, notes)
    assert torch.allclose(second["block.0/w"], torch.tensor([[3.0, 0.14], [0.0, 4.0]]))
    far = weights([[30.0, 0.0], [0.0, 40.0]], 2.0)
    third = rule.begin_client(received, far, notes)
    assert torch.equal(third["block.0/w"], far["block.0/w"])  # a share of at most 1
    assert notes == {"lambda": pytest.approx(0.28)}


def test_fedema_waits_for_a_divergence_to_set_lambda() -> None:
    rule, notes = FedEMA(), {}
    received = weights([[3.0, 0.0], [0.0, 4.0]], 1.0)
    start = rule.begin_client(received, weights([[3.0, 0.0], [0.0, 4.0]], 5.0), notes)
    assert notes == {}
    assert all(torch.equal(start[key], tensor) for key, tensor in received.items())


@pytest.mark.parametrize("bad", [-0.1, math.nan])
def test_thresholds_are_checked(bad: float) -> None:
    with pytest.raises(ValueError, match="threshold must be at least 0, got"):
        FedU(bad)


@pytest.mark.parametrize("bad", [0.0, 1.1, -1.0, math.nan])
def test_shares_are_checked(bad: float) -> None:
    with pytest.raises(ValueError, match="tau must be above 0 and at most 1, got"):
        FedEMA(bad)


@pytest.mark.parametrize("rule", RULES)
def test_a_predictor_is_needed(rule: StartRule) -> None:
    rule.check(["head.projector", "head.predictor"])
    with pytest.raises(ValueError, match=f"{type(rule).__name__} needs a method with a predictor, such as BYOL"):
        rule.check(["head.projector"])


# --- in a federation


@pytest.mark.parametrize("rule", RULES)
def test_the_first_round_starts_from_what_was_received(rule: StartRule, make_world: Callable[..., Any]) -> None:
    plain, ruled = (make_world(EndToEnd(), method="BYOL", start=start) for start in (None, rule))
    assert plain.run(1) == ruled.run(1)
    assert all(torch.equal(tensor, ruled.weights()[key]) for key, tensor in plain.weights().items())
    assert plain.run(1) != ruled.run(1)


@pytest.mark.parametrize("rule", RULES)
def test_the_second_round_starts_from_the_mix(rule: StartRule, make_world: Callable[..., Any]) -> None:
    world = make_world(EndToEnd(), method="BYOL", start=rule)
    world.run(1)
    own = {client: dict(memory.weights) for client, memory in world.local.client_states.items()}
    received, seen = world.weights(), starts_of(world)
    world.run(1)
    for client in range(3):
        expected = rule.begin_client(received, own[client], {})
        assert all(torch.equal(tensor, expected[key]) for key, tensor in seen[client].items())
        assert any(not torch.equal(tensor, received[key]) for key, tensor in seen[client].items())


def test_the_target_starts_as_a_copy_of_the_mix(make_world: Callable[..., Any]) -> None:
    world = make_world(EndToEnd(), method="BYOL", start=FedEMA())
    world.run(1)
    train, equal = world.local._train, []

    def noted(*arguments: Any) -> Any:
        method = world.local.model.method
        pairs = zip(method.online().parameters(), method.target.copy.parameters(), strict=True)
        equal.extend(torch.equal(online, target) for online, target in pairs)
        return train(*arguments)

    world.local._train = noted
    world.run(1)
    assert equal
    assert all(equal)


@pytest.mark.parametrize("rule", RULES)
def test_a_new_stage_starts_from_what_was_received(rule: StartRule, make_world: Callable[..., Any]) -> None:
    world = make_world(LayerWise(), rounds=6, method="BYOL", start=rule)
    seen = starts_of(world)
    for round_ in range(6):
        world.server.begin_round()
        received = world.weights()
        world.server.end_round(world.results(world.server.current.cohort))
        mixed = [any(not torch.equal(t, received[k]) for k, t in seen[client].items()) for client in range(3)]
        assert mixed == [round_ % 2 == 1] * 3
    assert all(memory.layers[0] == "block.2" for memory in world.local.client_states.values())


def test_who_missed_a_round_mixes_with_its_last_one(
    make_world: Callable[..., Any], plan_cohorts: Callable[..., None]
) -> None:
    plan_cohorts((0, 1), (0,), (0, 1))
    world = make_world(EndToEnd(), method="BYOL", start=FedEMA())
    world.run(1)
    kept = dict(world.local.client_states[1].weights)
    world.run(1)
    assert all(torch.equal(tensor, world.local.client_states[1].weights[key]) for key, tensor in kept.items())
    received, seen = world.weights(), starts_of(world)
    world.run(1)
    expected = FedEMA().begin_client(received, kept, {})
    assert all(torch.equal(tensor, expected[key]) for key, tensor in seen[1].items())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("stop", [2, 3])
def test_memories_survive_checkpoints(rule: StartRule, stop: int, make_world: Callable[..., Any]) -> None:
    settings = {"scheme": LayerWise(), "rounds": 6, "sizes": (4, 4, 8), "cohort_size": 2, "method": "BYOL"}
    whole, resumed = (make_world(**settings, start=rule) for _ in range(2))
    whole.run(stop)
    file = io.BytesIO()
    torch.save(whole.checkpoint(), file)
    file.seek(0)
    resumed.restore(torch.load(file, weights_only=True))
    assert {c: m.notes for c, m in resumed.local.client_states.items()} == {
        c: m.notes for c, m in whole.local.client_states.items()
    }
    assert repr(resumed.run(6 - stop)) == repr(whole.run(6 - stop))
    assert all(torch.equal(tensor, resumed.weights()[key]) for key, tensor in whole.weights().items())


def test_lambda_is_each_clients_own_and_chosen_once_a_stage(make_world: Callable[..., Any]) -> None:
    world = make_world(EndToEnd(), rounds=4, method="BYOL", start=FedEMA())
    world.run(2)
    first = {client: memory.notes["lambda"] for client, memory in world.local.client_states.items()}
    assert len(set(first.values())) == 3
    world.run(2)
    assert {client: memory.notes["lambda"] for client, memory in world.local.client_states.items()} == first


def test_a_methods_state_is_no_part_of_the_divergence() -> None:
    received, own = ({"stem/w": torch.full((2, 2), value), "state.centre/c": torch.ones(1, 9)} for value in (1.0, 2.0))
    own["state.centre/c"] += 100
    assert encoder_divergence(received, own) == 2.0
