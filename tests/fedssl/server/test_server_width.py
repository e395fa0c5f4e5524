"""Rounds in which clients train encoders of the width that their devices can."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from fedssl.costs.prediction import StepPredictor
from fedssl.devices import DeviceProfile
from fedssl.federation.dry import dry_federation, dry_rounds
from fedssl.protocol.messages import flatten, num_bytes
from fedssl.server.calibration import Calibration
from fedssl.training.export import timm_state
from layerwise import EncoderSpec, FedRolex, HeteroFL, build_encoder

LASTING = {"stem", "block.0", "block.1", "block.2", "tail"}


def groups(*numbers: int) -> set[str]:
    return {f"width.{block}.{number}" for block in range(3) for number in numbers}


@pytest.fixture(scope="module")
def spec(vit_spec: EncoderSpec) -> EncoderSpec:
    return HeteroFL(2).adapt(vit_spec)


@pytest.fixture
def devices(make_model: Callable[..., Any], spec: EncoderSpec) -> list[DeviceProfile]:
    """Of three devices that can train both groups, and twice one, to the byte."""
    predict, scheme = StepPredictor(make_model("BYOL", spec)), HeteroFL(2)
    both, one = (predict(stage, 4) for stage in scheme.choices(scheme.stages(3, 1)[0]))
    assert one.macs < both.macs
    assert one.activations < both.activations
    assert one.copies < both.copies
    assert one.parameters < both.parameters
    return [DeviceProfile(memory_bytes=peak) for peak in (both.peak, one.peak, one.peak)]


@pytest.fixture
def make_wide(make_world: Callable[..., Any], spec: EncoderSpec, devices: Any) -> Callable[..., Any]:
    return partial(make_world, rounds=3, method="BYOL", spec=spec, devices=devices)


def test_a_group_is_the_mean_over_those_who_have_it(make_wide: Callable[..., Any]) -> None:
    world = make_wide(HeteroFL(2))
    world.server.begin_round()
    results = []
    for client, mine in enumerate((groups(0, 1), groups(0), groups(0))):
        task = world.server.make_task(client)
        assert {part for part in task.active if not part.startswith("head")} == LASTING | mine
        results.append(copy.deepcopy(world.local(task, world.clients[client])))
        assert set(results[-1].parts) == set(task.active)
    report = world.server.end_round(results)
    assert report.up_bytes == sum(num_bytes(result.parts) for result in results)
    after, given = world.weights(), [flatten(result.parts) for result in results]
    for key in flatten(world.server.model.read(groups(0, 1))):
        own = [(each[key], result.num_images) for each, result in zip(given, results, strict=True) if key in each]
        assert len(own) == (1 if "/" in key and key.split("/")[0].endswith(".1") else 3)
        mean = sum(tensor * images for tensor, images in own) / sum(images for _, images in own)
        torch.testing.assert_close(after[key], mean)


def test_groups_roll_on_round_by_round(make_wide: Callable[..., Any]) -> None:
    world = make_wide(FedRolex(2))
    for number in (0, 1, 0):
        world.server.begin_round()
        tasks = [copy.deepcopy(world.server.make_task(client)) for client in range(3)]
        assert [set(task.active) & groups(0, 1) for task in tasks] == [groups(0, 1), groups(number), groups(number)]
        world.server.end_round([copy.deepcopy(world.local(task, world.clients[task.client_id])) for task in tasks])


def test_groups_that_a_client_lacks_do_not_act(make_wide: Callable[..., Any]) -> None:
    world = make_wide(HeteroFL(2))
    world.run(1)
    world.server.begin_round()
    task = copy.deepcopy(world.server.make_task(1))
    mine = copy.deepcopy(world.local(task, world.clients[1]))
    with torch.no_grad():
        for name in groups(1):
            for parameter in world.local.model.parts[name].parameters():
                parameter.add_(1)
    again = world.local(task, world.clients[1])
    assert all(torch.equal(tensor, flatten(again.parts)[key]) for key, tensor in flatten(mine.parts).items())


def test_a_dry_run_costs_what_the_run_costs(make_wide: Callable[..., Any]) -> None:
    world = make_wide(FedRolex(2))
    federation = world.federation
    dry = dry_federation(federation.settings, federation.sizes, federation.predictor)
    foretold = [(each.report.down_bytes, each.report.up_bytes, each.report.macs) for each in dry_rounds(dry)]
    assert foretold == [(each.down_bytes, each.up_bytes, each.macs) for each in world.run(3)]


def test_a_run_resumes_bit_for_bit(make_wide: Callable[..., Any]) -> None:
    whole, resumed = (make_wide(FedRolex(2), calibration=Calibration(batch_size=4)) for _ in range(2))
    whole.run(2)
    resumed.restore(whole.checkpoint())
    assert repr(resumed.round()) == repr(whole.round())
    weights = resumed.weights()
    assert all(torch.equal(weights[key], tensor) for key, tensor in whole.weights().items())


def test_a_written_encoder_is_undivided(make_wide: Callable[..., Any], spec: EncoderSpec) -> None:
    world = make_wide(HeteroFL(2))
    world.run(1)
    encoder, plain = world.server.model.encoder, build_encoder(replace(spec, width_groups=1), seed=1)
    state = timm_state(encoder)
    for index, block in enumerate(plain.blocks):
        prefix = f"blocks.{index}."
        block.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    plain.stem.load_state_dict(encoder.stem.state_dict())
    plain.tail.load_state_dict(encoder.tail.state_dict())
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(plain(images), encoder(images))
