"""SCAFFOLD: the server keeps each client's mean gradient, and tells clients what theirs lacks."""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim.optimizer import register_optimizer_step_pre_hook
from updates import settle, update_of

from fedssl.client.local_step import LocalStep
from fedssl.costs.prediction import StepPredictor
from fedssl.protocol.messages import Failure, num_bytes
from fedssl.server.aggregation import SCAFFOLD, WeightedMean
from fedssl.server.participation import Participation
from layerwise import EndToEnd, LayerWise, Stage

W = "a/w"


def begun(clients: int = 4, **optimizer: Any) -> SCAFFOLD:
    rule = SCAFFOLD()
    rule.check_optimizer(SGD([nn.Parameter(torch.zeros(1))], **{"lr": 0.5} | optimizer))
    rule.begin(Participation([9] * clients), 3)
    return rule


def play(rule: SCAFFOLD, now: float, **clients: tuple[float, int]) -> float:
    """One round of clients that reach a weight in some steps; returns the global weight."""
    rule.begin_round({W: torch.tensor([now])})
    for name, (reached, steps) in clients.items():
        rule.add(update_of({W: torch.tensor([reached])}, 7, steps, client_id=int(name[1:])))
    return rule.finish()[W].item()


def corrections(rule: SCAFFOLD, clients: int = 4) -> list[float]:
    return [rule.correction(client, {W: torch.zeros(1)})[W].item() for client in range(clients)]


def test_two_rounds_by_hand() -> None:
    """Of four clients with a learning rate of 1/2.

    Round 1 from 10: c_1 = (10 - 8) / (2 / 2) = 2, c_3 = (10 - 4) / (4 / 2) = 3, c = (2 + 3) / 4.
    Round 2 from 6: c_1 = 2 - 1.25 + (6 - 5) / (2 / 2) = 1.75, c_0 = 0 - 1.25 + (6 - 6.5) / (1 / 2) = -2.25,
    c = 1.25 + (1.75 - 2 - 2.25) / 4 = 0.625.
    """
    rule = begun()
    assert corrections(rule) == [0, 0, 0, 0]
    assert play(rule, 10.0, c1=(8.0, 2), c3=(4.0, 4)) == 6
    assert corrections(rule) == [1.25, 1.25 - 2, 1.25, 1.25 - 3]
    assert play(rule, 6.0, c0=(6.5, 1), c1=(5.0, 2)) == 5.75
    assert corrections(rule) == [0.625 + 2.25, 0.625 - 1.75, 0.625, 0.625 - 3]


def test_tasks_made_within_a_round_have_the_variates_of_its_beginning() -> None:
    rule = begun()
    rule.begin_round({W: torch.tensor([10.0])})
    rule.add(update_of({W: torch.tensor([8.0])}, 1, 2, client_id=1))
    assert corrections(rule)[2] == 0


def test_momentum_counts_as_longer_steps() -> None:
    """Two steps under a gradient of 1: 1 + (1 + 1/2) = 2.5 of them."""
    rule = begun(momentum=0.5)
    play(rule, 0.0, c0=(-2.5 * 0.5, 2))
    assert corrections(rule) == [pytest.approx(0.25 - 1), *[pytest.approx(0.25)] * 3]


def test_a_rounds_own_learning_rate_counts() -> None:
    """Two steps of 1/2 x 1/2 under a gradient of 1."""
    rule = begun()
    rule.begin_round({W: torch.tensor([10.0])})
    rule.add(update_of({W: torch.tensor([9.5])}, 1, 2, client_id=0, lr_factor=0.5))
    rule.finish()
    assert corrections(rule) == [0.25 - 1, 0.25, 0.25, 0.25]


def test_statistics_have_the_mean_and_no_variate() -> None:
    rule, key = begun(), "a/norm.running_mean"
    rule.begin_round({key: torch.tensor([0.0])})
    for value in (1.0, 2.0):
        rule.add(update_of({key: torch.tensor([value])}))
    assert rule.finish()[key].item() == 1.5
    assert rule.state_dict() == {"common": {}, "own": {0: {}}}


def test_another_run_starts_without_variates() -> None:
    rule = begun()
    play(rule, 1.0, c0=(0.0, 1))
    rule.begin(Participation([9] * 4), 3)
    assert corrections(rule) == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "optimizer", [partial(AdamW, lr=0.1), partial(SGD, lr=0.1, momentum=0.9, nesterov=True), partial(SGD, dampening=1)]
)
def test_other_optimizers_are_refused(optimizer: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"SCAFFOLD needs clients with SGD.*--model.optimizer=torch.optim.SGD"):
        SCAFFOLD().check_optimizer(optimizer([nn.Parameter(torch.zeros(1))]))


def test_clients_with_different_data_find_the_common_optimum() -> None:
    assert settle(WeightedMean()) == pytest.approx(0.5, abs=0.02)
    assert settle(SCAFFOLD()) == pytest.approx(0.8, abs=1e-4)


def close(weights: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return all(torch.allclose(weights[key].float(), others[key].float(), atol=2e-6) for key in weights)


@pytest.mark.parametrize("method", ["SimCLR", "BarlowTwins"])
def test_a_clients_variate_is_its_mean_gradient(method: str, make_world: Callable[..., Any]) -> None:
    """Of the steps before their correction, which holds only if the correction was the one that the rule assumes."""
    gradients: list[dict[int, Tensor]] = []

    def note(optimizer: Any, *_: Any) -> None:
        gradients.append({id(p): p.grad.clone() for p in optimizer.param_groups[0]["params"] if p.grad is not None})

    rule = SCAFFOLD()
    world = make_world(EndToEnd(), rounds=2, sizes=(4, 12), method=method, aggregation=rule)
    world.run(1)
    handle = register_optimizer_step_pre_hook(note)
    world.run(1)
    handle.remove()
    assert len(gradients) == 1 + 3 + 1, "the server steps last"
    for client, rows in {0: gradients[:1], 1: gradients[1:4]}.items():
        for key, parameter in world.local.model.parameters(world.local.model.parts).items():
            if id(parameter) in rows[0]:
                mean = torch.stack([row[id(parameter)] for row in rows]).mean(dim=0)
                assert torch.allclose(rule.state_dict()["own"][client][key], mean, atol=1e-4), key
                assert mean.any()


def test_the_first_round_is_fedavgs(make_world: Callable[..., Any]) -> None:
    settings = {"sizes": (8, 8, 8), "epochs": 2}
    corrected, plain = make_world(aggregation=SCAFFOLD(), **settings), make_world(**settings)
    corrected.run(1), plain.run(1)
    assert close(corrected.weights(), plain.weights())
    corrected.run(1), plain.run(1)
    assert not close(corrected.weights(), plain.weights())


def test_single_steps_of_everyone_are_fedavgs(make_world: Callable[..., Any]) -> None:
    """The corrections c - c_i of all clients add up to zero."""
    worlds = [make_world(EndToEnd(), sizes=(4, 4, 4), **own) for own in ({"aggregation": SCAFFOLD()}, {})]
    for world in worlds:
        world.run(3)
    assert close(worlds[0].weights(), worlds[1].weights())


def test_variates_come_and_go_with_their_parts(make_world: Callable[..., Any]) -> None:
    rule = SCAFFOLD()
    world = make_world(LayerWise(), rounds=3, aggregation=rule)
    parts: list[set[str]] = []
    for _ in range(3):
        world.run(1)
        parts.append({key.partition("/")[0] for key in rule.state_dict()["common"]})
        assert all(own.keys() == rule.state_dict()["common"].keys() for own in rule.state_dict()["own"].values())
    lasting = {"tail", "head.projector"}
    assert parts == [{"stem", "block.0"} | lasting, {"block.1"} | lasting, {"block.2"} | lasting]


def test_corrections_are_paid_for(make_world: Callable[..., Any]) -> None:
    corrected, plain = make_world(EndToEnd(), rounds=1, aggregation=SCAFFOLD()), make_world(EndToEnd(), rounds=1)
    parameters = sum(p.nbytes for p in plain.server.model.parameters(plain.server.model.parts).values())
    first, second = corrected.round(), plain.round()
    assert first.up_bytes == second.up_bytes
    assert first.down_bytes == second.down_bytes + 3 * parameters
    booked = [world.server.ledger.clients[1].down_bytes for world in (corrected, plain)]
    assert booked[0] == booked[1] + parameters
    task = corrected.server.make_task(0)
    assert num_bytes(task.correction) == parameters


def test_devices_hold_the_correction(make_model: Callable[..., Any]) -> None:
    model, stage = make_model(), Stage(0, (0, 1), (1,), False, 1)
    plain, corrected = (
        StepPredictor(model, LocalStep(corrected=corrected)).run(stage, 4) for corrected in (False, True)
    )
    trained = sum(p.nbytes for p in model.parameters(model.trained_names(stage)).values())
    assert corrected.copies - plain.copies == corrected.peak - plain.peak == trained
    assert corrected.macs == plain.macs
    assert corrected.activations == plain.activations


def test_a_lost_update_leaves_the_variates(make_world: Callable[..., Any]) -> None:
    rule = SCAFFOLD()
    world = make_world(EndToEnd(), aggregation=rule)
    world.run(1)
    before = {client: dict(own) for client, own in rule.state_dict()["own"].items()}
    results = [world.local(world.server.make_task(0), world.clients[0]), Failure(1, "gone"), Failure(2, "gone")]
    world.server.begin_round()
    world.server.make_task(0)
    world.server.end_round(results)
    after = rule.state_dict()["own"]
    for client, kept in {0: False, 1: True, 2: True}.items():
        assert all(torch.equal(after[client][key], before[client][key]) for key in before[client]) == kept
    common = defaultdict(list)
    for own in after.values():
        for key, variate in own.items():
            common[key].append(variate)
    for key, variate in rule.state_dict()["common"].items():
        assert torch.allclose(variate, torch.stack(common[key]).mean(0), atol=1e-6), key
