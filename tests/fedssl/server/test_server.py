"""Rounds of the server, driven by hand."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam

from fedssl.protocol.messages import Failure, Result, flatten
from fedssl.server.calibration import Calibration
from fedssl.server.server import AllClientsFailedError
from layerwise import EncoderSpec, EndToEnd, LayerWise, Progressive

Weights = dict[str, Tensor]


def changed_parts(before: Weights, after: Weights) -> set[str]:
    return {key.split("/")[0] for key in before if not torch.equal(before[key], after[key])}


def kept_results(world: Any) -> list[Result]:
    """All clients' results of a new round, with memory of their own."""
    return [copy.deepcopy(result) for result in world.results(world.server.begin_round())]


def gradients(world: Any) -> Weights:
    modules = world.server.model.parts.items()
    named = {f"{part}/{name}": p for part, module in modules for name, p in module.named_parameters()}
    return {key: p.grad.clone() for key, p in named.items() if p.grad is not None}


# --- a whole layer-wise run


@pytest.mark.parametrize("method", ["SimCLR", "BYOL", "MoCoV3"])
def test_layer_wise_run_changes_exactly_the_trained_parts(method: str, make_world: Callable[..., Any]) -> None:
    world = make_world(LayerWise(), rounds=6, method=method)
    for round_ in range(6):
        assert not world.server.done
        before = world.weights()
        report = world.round()
        stage = round_ // 2
        stem = {"stem"} if stage == 0 else set()
        heads = set(world.server.model.heads)
        assert changed_parts(before, world.weights()) == {f"block.{stage}", "tail", *stem, *heads}
        assert (report.round, report.stage, report.trained) == (round_, stage, (0, 1, 2))
        assert (report.dropped, report.failures, report.calibration_loss) == ((), (), None)
        assert math.isfinite(report.loss)
        assert world.server.model.encoder.depth == stage + 1
    assert world.server.done
    assert world.server.stage == world.server.stages[-1]


def test_progressive_run_trains_all_present_parts(make_world: Callable[..., Any]) -> None:
    world = make_world(Progressive(), rounds=3)
    for stage in range(3):
        before = world.weights()
        world.round()
        blocks = {f"block.{i}" for i in range(stage + 1)}
        assert changed_parts(before, world.weights()) == {"stem", "tail", "head.projector"} | blocks


def test_resnet_trains_the_temporary_layer_of_its_stage(
    make_world: Callable[..., Any], resnet_spec: EncoderSpec
) -> None:
    world = make_world(LayerWise(), rounds=4, sizes=(4, 4), spec=resnet_spec)
    changed = []
    for _ in range(4):
        before = world.weights()
        world.round()
        changed.append(changed_parts(before, world.weights()) - {"head.projector"})
    assert changed == [{"stem", "block.0", "reshape.0"}, {"block.1", "reshape.1"}, {"block.2"}, {"block.3"}]


@pytest.mark.parametrize("scheme", [Progressive(blocks_per_stage=3), LayerWise(blocks_per_stage=3)])
@pytest.mark.parametrize("method", ["SimCLR", "MoCoV3"])
def test_a_single_stage_is_end_to_end(scheme: Any, method: str, make_world: Callable[..., Any]) -> None:
    worlds = [make_world(s, rounds=2, method=method) for s in (scheme, EndToEnd())]
    reports = [world.run(2) for world in worlds]
    assert reports[0] == reports[1]
    assert not changed_parts(worlds[0].weights(), worlds[1].weights())


def test_seed_decides_everything(make_world: Callable[..., Any]) -> None:
    settings = {"cohort_size": 2, "dropout": 0.3, "sizes": (4, 4, 4, 4)}
    first, again, other = (make_world(seed=seed, **settings) for seed in (1, 1, 2))
    assert first.run(3) == again.run(3) != other.run(3)
    assert not changed_parts(first.weights(), again.weights())
    assert changed_parts(first.weights(), other.weights())


# --- aggregation and server optimizers


def test_fedavg_is_the_weighted_mean_by_hand(make_world: Callable[..., Any]) -> None:
    world = make_world(EndToEnd(), rounds=1)
    results = kept_results(world)
    sizes = [result.num_images for result in results]
    assert sizes == [4, 9, 8]
    report = world.server.end_round(results)
    after = world.weights()
    clients = [flatten(result.parts) for result in results]
    for key in clients[0]:
        if clients[0][key].is_floating_point():
            mean = sum(n * client[key].double() for n, client in zip(sizes, clients, strict=True)) / 21
            assert torch.allclose(after[key].double(), mean, rtol=0, atol=1e-6), key
        else:
            assert after[key] == max(client[key] for client in clients)
    assert report.loss == pytest.approx(sum(r.loss * r.num_images for r in results) / 21)


def test_counters_take_the_largest_of_the_clients(make_world: Callable[..., Any]) -> None:
    world = make_world(EndToEnd(), rounds=2)
    counter = "head.projector/layers.1.num_batches_tracked"
    world.round()
    assert world.weights()[counter] == 2 * 2  # two steps with two views, of clients with 8 and 9 images
    world.round()
    assert world.weights()[counter] == 8


def test_results_may_share_the_memory_of_one_model(make_world: Callable[..., Any]) -> None:
    streamed, collected = make_world(rounds=3), make_world(rounds=3)
    for _ in range(3):
        streamed.round()
        collected.server.end_round(kept_results(collected))
    assert not changed_parts(streamed.weights(), collected.weights())


def test_server_momentum_by_hand(make_world: Callable[..., Any]) -> None:
    world = make_world(EndToEnd(), rounds=3, server_optimizer=partial(SGD, lr=0.5, momentum=0.9))
    velocity: Weights = {}
    for _ in range(3):
        before = world.weights()
        seen: list[Weights] = []
        world.round(lambda seen=seen: (seen.append(gradients(world)), world.server.optimizer.step()))
        for key, gradient in seen[0].items():
            velocity[key] = 0.9 * velocity.get(key, 0) + gradient
            expected = before[key] - 0.5 * velocity[key]
            assert torch.allclose(world.weights()[key], expected, rtol=0, atol=1e-6), key
    assert gradients(world) == {}


def test_server_optimizers_differ_and_keep_their_state(make_world: Callable[..., Any]) -> None:
    optimizers = [
        partial(SGD, lr=1.0),
        partial(SGD, lr=1.0, momentum=0.9),
        partial(Adam, lr=0.01),
    ]
    worlds = [make_world(rounds=3, server_optimizer=optimizer) for optimizer in optimizers]
    firsts, lasts = [], []
    for world in worlds:
        world.round()
        firsts.append(world.weights()["tail/fc_norm.weight"])
        world.run(2)
        lasts.append(world.weights()["tail/fc_norm.weight"])
    assert torch.equal(firsts[0], firsts[1])  # momentum has nothing to add in the first round
    assert not torch.equal(firsts[0], firsts[2])
    assert all(not torch.equal(a, b) for a, b in ((lasts[0], lasts[1]), (lasts[0], lasts[2])))
    adam = worlds[2].server.optimizer
    steps = {p: state["step"].item() for p, state in adam.state.items()}
    modules = worlds[2].server.model.parts
    assert steps[modules["tail"].fc_norm.weight] == 3
    assert steps[modules["block.0"].mlp.fc1.weight] == steps[modules["block.2"].mlp.fc1.weight] == 1


def test_server_optimizer_leaves_frozen_parts_alone(make_world: Callable[..., Any]) -> None:
    world = make_world(rounds=3, server_optimizer=partial(SGD, lr=1.0, momentum=0.9, weight_decay=0.1))
    world.run(2)
    before = world.weights()
    world.round()
    assert changed_parts(before, world.weights()) == {"block.2", "tail", "head.projector"}


# --- dropout and failures


@pytest.mark.parametrize("optimizer", [partial(SGD, lr=1.0, momentum=0.9), partial(Adam, lr=0.1)])
def test_an_empty_round_changes_nothing(
    optimizer: Any, make_world: Callable[..., Any], plan_cohorts: Callable[..., None]
) -> None:
    plan_cohorts((0, 1, 2), (), (1,))
    world = make_world(EndToEnd(), rounds=3, server_optimizer=optimizer)
    world.round()
    before, steps = world.weights(), []
    report = world.round(lambda: steps.append(world.server.optimizer.step()))
    assert len(steps) == 1
    assert not changed_parts(before, world.weights())
    assert (report.trained, report.dropped, report.failures) == ((), (0, 1, 2), ())
    assert (report.down_bytes, report.up_bytes, report.macs, report.activation_bytes) == (0, 0, 0, 0)
    assert math.isnan(report.loss)
    assert world.server.round == 2
    assert world.round().trained == (1,)
    assert world.server.done


def test_an_empty_round_is_not_calibrated(make_world: Callable[..., Any], plan_cohorts: Callable[..., None]) -> None:
    plan_cohorts((0, 1, 2), ())
    world = make_world(rounds=6, calibration=Calibration(batch_size=4))
    assert world.round().calibration_loss is not None
    before = world.weights()
    assert world.round().calibration_loss is None
    assert not changed_parts(before, world.weights())


def test_a_round_that_everyone_drops_out_of_by_chance(make_world: Callable[..., Any]) -> None:
    world = make_world(EndToEnd(), rounds=12, sizes=(4, 4), cohort_size=1, dropout=0.8)
    reports = world.run(12)
    assert all(len(report.trained) + len(report.dropped) == 1 for report in reports)
    assert any(report.trained for report in reports)
    assert any(report.dropped for report in reports)


def test_step_is_called_once_a_round(make_world: Callable[..., Any]) -> None:
    world, calls = make_world(), []
    before = world.weights()
    world.round(lambda: calls.append(1))
    assert len(calls) == 1
    parameters = {name for name, _ in world.server.model.encoder.named_parameters()}
    assert parameters
    stem = {key: tensor for key, tensor in before.items() if key.startswith("stem")}
    assert not changed_parts(stem, world.weights())  # a step that does nothing moves no parameter


def test_all_clients_failing_is_an_error_and_changes_nothing(make_world: Callable[..., Any]) -> None:
    world = make_world(EndToEnd(), rounds=3)
    world.round()
    before, steps = world.weights(), []
    broken = kept_results(world)[0]
    broken.parts["stem"]["model.pos_embed"].fill_(math.nan)
    results = [broken, Failure(1, "battery"), Failure(2, "loss nan")]
    message = "round 1: no usable update; client 0: stem/model.pos_embed is not finite; client 1: battery; client 2"
    with pytest.raises(AllClientsFailedError, match=message):
        world.server.end_round(results, lambda: steps.append(1))
    assert not steps
    assert not changed_parts(before, world.weights())
    assert world.server.round == 1


def test_a_failing_client_is_left_out_counted_and_named(make_world: Callable[..., Any]) -> None:
    world = make_world(EndToEnd(), rounds=3, sizes=(4, 1, 4))
    results = list(world.run(1))
    assert results[0].trained == (0, 2)
    assert results[0].failures == (Failure(1, "1 images are too few to contrast", skipped=True),)
    assert world.server.failed_updates == 1
    world.run(2)
    assert world.server.failed_updates == 3
    assert world.server.ledger.clients[1].rounds == 0
    assert world.server.ledger.clients[1].down_bytes > 0


def test_a_bad_update_counts_as_if_its_client_had_not_been_there(
    make_world: Callable[..., Any], plan_cohorts: Callable[..., None]
) -> None:
    plan_cohorts((0, 1, 2), (0, 2))
    poisoned, without = make_world(EndToEnd()), make_world(EndToEnd())
    results = kept_results(poisoned)
    results[1].parts["tail"]["fc_norm.bias"][3] = math.inf
    poisoned.server.end_round(results)
    without.round()
    assert not changed_parts(poisoned.weights(), without.weights())


# --- growth


@pytest.mark.parametrize("transfer", [False, True])
def test_weight_transfer_starts_a_new_block_from_the_one_before(transfer: bool, make_world: Callable[..., Any]) -> None:
    world = make_world(LayerWise(weight_transfer=transfer), rounds=6)
    world.run(2)
    fresh, trained = (world.server.model.read([f"block.{i}"])[f"block.{i}"] for i in (1, 0))
    own = {name: tensor.clone() for name, tensor in fresh.items()}
    world.server.begin_round()
    started = world.server.make_task(0).active["block.1"]
    expected = trained if transfer else own
    assert all(torch.equal(started[name], expected[name]) for name in expected)
    assert any(not torch.equal(trained[name], own[name]) for name in own)


def test_weights_are_transferred_once_a_stage(make_world: Callable[..., Any]) -> None:
    world = make_world(LayerWise(weight_transfer=True), rounds=6)
    world.run(3)
    before = world.weights()
    world.server.begin_round()
    assert not changed_parts(before, world.weights())


@pytest.mark.parametrize("renewed", [False, True])
def test_heads_start_anew_in_each_stage_if_asked_for(renewed: bool, make_world: Callable[..., Any]) -> None:
    world = make_world(LayerWise(renew_heads=renewed), rounds=6, method="BYOL")
    world.run(1)
    before = world.weights()
    world.server.begin_round()
    assert not changed_parts(before, world.weights())
    world.run(1)
    before = world.weights()
    world.server.begin_round()
    changed = changed_parts(before, world.weights())
    assert changed == ({"head.projector", "head.predictor"} if renewed else set())
    counters = [tensor for key, tensor in world.weights().items() if "num_batches" in key]
    assert all(counter == 0 for counter in counters) == renewed


def test_renewed_heads_differ_by_stage_and_repeat_by_seed(make_world: Callable[..., Any]) -> None:
    def started(seed: int) -> list[Tensor]:
        world = make_world(LayerWise(renew_heads=True), seed=seed)
        heads = []
        for _ in range(3):
            world.server.begin_round()
            heads.append(world.weights()["head.projector/layers.0.weight"])
            world.round()
        return heads

    first, again, other = started(0), started(0), started(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], first[2])
    assert not torch.equal(first[1], other[1])


def test_a_scheme_must_fit_encoder_and_rounds(make_world: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="blocks_per_stage 2 does not divide the encoder's 3 blocks"):
        make_world(LayerWise(blocks_per_stage=2))
    with pytest.raises(ValueError, match="rounds 4 cannot be shared equally by 3 stages"):
        make_world(LayerWise(), rounds=4)


def test_fewer_results_than_the_quorum_are_an_error_if_somebody_failed(make_world: Callable[..., Any]) -> None:
    world = make_world()
    world.server.quorum = 3
    before, results = world.weights(), list(world.results(world.server.begin_round()))
    late = [*results[:2], Failure(2, "no answer", late=True)]
    with pytest.raises(AllClientsFailedError, match="2 usable update; 3 are needed; client 2: no answer"):
        world.server.end_round(late)
    assert all(torch.equal(tensor, before[key]) for key, tensor in world.weights().items())
    world.server.quorum = 2
    assert world.server.end_round(late).trained == (0, 1)


def test_a_client_gets_again_what_it_says_it_lacks(make_world: Callable[..., Any]) -> None:
    world = make_world()
    world.run(1)
    world.server.begin_round()
    first = world.server.make_task(0)
    assert first.frozen
    assert not world.server.make_task(0).frozen
    world.server.holdings.replace(0, {name: first.frozen_ids[name] for name in ("stem",)})
    again = world.server.make_task(0)
    assert set(again.frozen) == set(first.frozen) - {"stem"}
    assert again.frozen_ids == first.frozen_ids
