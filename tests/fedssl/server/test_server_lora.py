"""Rounds in which clients train low-rank adapters, each of the rank that its device can."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from fedssl import NormWeightedMean
from fedssl.costs.prediction import StepPredictor
from fedssl.devices import DeviceProfile
from fedssl.protocol.messages import num_bytes
from fedssl.training.export import timm_state
from layerwise import EncoderSpec, EndToEnd, HeterogeneousLoRA, LastLayers, LoRA, Stage, build_encoder, paper_cost

RANKS = [1, 2, 4]
HEAD = {"tail", "head.classifier"}
BASE = {"stem", "block.0", "block.1", "block.2"}


def adapters(number: int) -> set[str]:
    return {f"adapter.{block}.{each}" for block in range(3) for each in range(number)}


def stages() -> list[Stage]:
    """Ranks 1, 2 and 4."""
    return [stage for (stage,) in LoRA(RANKS).variants(3, 3)]


@pytest.fixture(scope="module")
def spec(vit_spec: EncoderSpec) -> EncoderSpec:
    return LoRA(RANKS).adapt(vit_spec)


@pytest.fixture
def devices(make_model: Callable[..., Any], spec: EncoderSpec) -> list[DeviceProfile]:
    """Of three devices that can train rank 4, 2 and 1, to the byte."""
    predict = StepPredictor(make_model("Supervised", spec))
    peaks = [predict(stage, 4).peak for stage in reversed(stages())]
    assert peaks[0] > peaks[1] > peaks[2]
    return [DeviceProfile(memory_bytes=peak) for peak in peaks]


@pytest.fixture
def make_lora(make_world: Callable[..., Any], spec: EncoderSpec) -> Callable[..., Any]:
    return partial(make_world, rounds=3, method="Supervised", spec=spec, optimizer=partial(SGD, lr=0.5))


def changed_parts(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {key.split("/")[0] for key in before if not torch.equal(before[key], after[key])}


def test_every_client_gets_and_sends_the_first_ranks(make_lora: Callable[..., Any], devices: Any) -> None:
    world = make_lora(HeterogeneousLoRA(RANKS), devices=devices, aggregation=NormWeightedMean())
    world.server.begin_round()
    before, results = world.weights(), []
    for client, number in enumerate((3, 2, 1)):
        task = world.server.make_task(client)
        assert set(task.active) == adapters(number) | HEAD
        assert set(task.frozen) == BASE
        results.append(copy.deepcopy(world.local(task, world.clients[client])))
        assert set(results[-1].parts) == adapters(number) | HEAD
        assert all(
            task.active["adapter.0.0"][key].shape[int(key.endswith("up"))] == 1 for key in task.active["adapter.0.0"]
        )
    report = world.server.end_round(results)
    assert report.up_bytes == sum(num_bytes(result.parts) for result in results)
    assert changed_parts(before, world.weights()) == adapters(3) | HEAD


def test_frozen_layers_travel_once(make_lora: Callable[..., Any], devices: Any) -> None:
    world = make_lora(HeterogeneousLoRA(RANKS), devices=devices, aggregation=NormWeightedMean())
    first, second, _ = world.run(3)
    base = sum(num_bytes(world.server.model.read([name])) for name in BASE)
    assert first.down_bytes - second.down_bytes == 3 * base
    assert second.down_bytes == second.up_bytes


@pytest.mark.parametrize(("clients", "number"), [((0, 0, 0), 3), ((0, 1, 0), 2), ((2, 0, 1), 1)])
def test_one_rank_for_all_is_the_largest_that_all_can(
    make_lora: Callable[..., Any], devices: Any, clients: tuple[int, ...], number: int
) -> None:
    world = make_lora(LoRA(RANKS), devices=[devices[each] for each in clients])
    cohort = world.server.begin_round()
    assert cohort.participants == (0, 1, 2)
    assert all(set(world.server.make_task(client).active) == adapters(number) | HEAD for client in range(3))


def test_ranks_that_are_not_in_use_do_not_act(make_lora: Callable[..., Any], devices: Any) -> None:
    """A client of rank 1 trains the same whatever the further ranks of the resident model are."""
    world = make_lora(HeterogeneousLoRA(RANKS), devices=devices)
    world.run(2)
    world.server.begin_round()
    task = copy.deepcopy(world.server.make_task(2))
    mine = copy.deepcopy(world.local(task, world.clients[2]))
    world.local.model.write(
        {"adapter.1.2": {k: v + 1 for k, v in world.local.model.read(["adapter.1.2"])["adapter.1.2"].items()}}
    )
    again = world.local(task, world.clients[2])
    for part, tensors in mine.parts.items():
        assert all(torch.equal(tensor, again.parts[part][key]) for key, tensor in tensors.items())


def test_steps_cost_what_is_predicted(make_lora: Callable[..., Any], make_model: Callable[..., Any], spec: Any) -> None:
    world = make_lora(LoRA(RANKS), sizes=(4,))
    report = world.round()
    step = StepPredictor(make_model("Supervised", spec))(stages()[2], 4)
    assert (report.macs, report.activation_bytes) == (step.macs, step.activations)
    frozen = sum(num_bytes(world.server.model.read([name])) for name in BASE)
    assert step.gradients == report.up_bytes < frozen


def test_a_written_encoder_has_the_adapters_in_its_weights(make_lora: Callable[..., Any], spec: EncoderSpec) -> None:
    world = make_lora(LoRA(RANKS))
    world.run(2)
    encoder = world.server.model.encoder
    plain = build_encoder(replace(spec, ranks=[]), seed=1)
    state = timm_state(encoder)
    for index, block in enumerate(plain.blocks):
        prefix = f"blocks.{index}."
        block.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    plain.stem.load_state_dict(encoder.stem.state_dict())
    plain.tail.load_state_dict(encoder.tail.state_dict())
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(plain(images), encoder(images), atol=1e-5)
    assert any(adapter.query.up.any() for adapter in encoder.adapters[0])


def test_a_run_resumes_bit_for_bit(make_lora: Callable[..., Any], devices: Any) -> None:
    scheme, rule = HeterogeneousLoRA(RANKS), NormWeightedMean()
    whole, resumed = (make_lora(scheme, devices=devices, aggregation=rule) for _ in range(2))
    whole.run(2)
    resumed.restore(whole.checkpoint())
    assert repr(resumed.round()) == repr(whole.round())
    assert not changed_parts(resumed.weights(), whole.weights())


def test_last_layers_and_adapters_by_cost(make_model: Callable[..., Any]) -> None:
    """CAFF's claims: fewer operations than LoRA for t < l / 2, and less activation memory for t < about 0.7 l."""
    options = {"patch_size": 4, "depth": 6, "embed_dim": 64, "num_heads": 4, "global_pool": "avg"}
    wide = EncoderSpec("vit_tiny_patch16_224", 32, 1, options=options)
    scheme = LoRA([4])
    lora = StepPredictor(make_model("Supervised", scheme.adapt(wide))).run(scheme.stages(6, 1)[0], 4)
    predict = StepPredictor(make_model("Supervised", wide))
    steps = {len(each.trained): predict(each, 4) for each in LastLayers().choices(EndToEnd().stages(6, 1)[0])}
    assert [t for t, step in steps.items() if step.macs < lora.macs] == [3, 2, 1]
    assert [t for t, step in steps.items() if step.activations < lora.activations] == [4, 3, 2, 1]


def test_the_papers_way_of_counting_knows_adapters(spec: EncoderSpec) -> None:
    """Adapted blocks run forward, and backward without the gradients of their weights: two passes of three."""
    encoder, plain = build_encoder(spec, seed=0), build_encoder(replace(spec, ranks=[]), seed=0)
    whole = paper_cost(plain, EndToEnd().stages(3, 1), {}, 1, 1)
    lora = paper_cost(encoder, LoRA(RANKS).stages(3, 1), {}, 1, 1)
    assert 0.6 < lora.macs / whole.macs < 0.75
    assert lora.up_bytes < whole.up_bytes
