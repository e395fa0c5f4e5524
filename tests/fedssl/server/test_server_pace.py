"""Stages that end when their blocks have converged."""

import io
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from fedssl.client.start import FedEMA
from fedssl.devices import Deadline, DeviceProfile
from fedssl.server.calibration import Calibration
from fedssl.server.selection import RoundRobinSelector, SmartFreezeSelector
from layerwise import BlockPerturbation, LayerWise, PaceReading, Progressive
from ssl_methods.alignment import MoonAlignment


def changed_parts(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {key.split("/")[0] for key in before if not torch.equal(before[key], after[key])}


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class Stub(BlockPerturbation):
    """Says freeze in the given rounds of the run."""

    def __init__(self, *freeze: int) -> None:
        super().__init__()
        self.freeze_at = freeze
        self.seen: list[int] = []
        self.begun: list[int] = []

    def begin_stage(self, tensors: Any, generator: torch.Generator) -> None:
        self.begun.append(sum(tensor.numel() for tensor in tensors))

    def observe(self, tensors: Any) -> PaceReading:
        self.seen.append(sum(tensor.numel() for tensor in tensors))
        return PaceReading(0.5, 0.5, 0.0, 1, len(self.seen) - 1 in self.freeze_at)


def quick(**settings: Any) -> BlockPerturbation:
    """Decides within few rounds."""
    return BlockPerturbation(**{"window": 2, "smoothing": 2, "patience": 1, "slope_threshold": 0.6} | settings)


def test_stages_end_when_the_controller_says_so_or_at_their_cap(make_world: Callable[..., Any]) -> None:
    pace = Stub(1, 7)
    world = make_world(LayerWise(), rounds=12, pace=pace)
    reports = []
    while not world.server.done:
        before = world.weights()
        reports.append(world.round())
        newest = reports[-1].stage
        assert f"block.{newest}" in changed_parts(before, world.weights())
        assert world.server.model.encoder.depth == newest + 1
    assert [report.stage for report in reports] == [0, 0, 1, 1, 1, 1, 2, 2]
    assert world.server.stage_rounds == [2, 4, 2]
    assert [report.round for report in reports if report.pace and report.pace.freeze] == [1, 7]
    sizes = [sum(p.numel() for p in world.server.model.parts[name].parameters()) for name in ("stem", "block.0")]
    assert pace.begun == [sum(sizes), sizes[1], sizes[1]]
    assert pace.seen == [sum(sizes)] * 2 + [sizes[1]] * 6


def test_a_stage_that_ends_early_grows_and_renews_as_any_other(make_world: Callable[..., Any]) -> None:
    """After two rounds of six a new stage starts from the block before; holdings follow."""
    scheme = LayerWise(weight_transfer=True, renew_heads=True)
    adaptive, fixed = make_world(scheme, rounds=18, pace=Stub(1, 3, 5)), make_world(scheme, rounds=6)
    for early, planned in zip(adaptive.run(6), fixed.run(6), strict=True):
        assert repr(replace(early, pace=None)) == repr(planned)
    assert not changed_parts(adaptive.weights(), fixed.weights())
    assert adaptive.server.done
    assert adaptive.server.holdings.state_dict() == fixed.server.holdings.state_dict()
    assert adaptive.server.stage_rounds == fixed.server.stage_rounds == [2, 2, 2]


def test_empty_rounds_are_not_observed_but_count(
    make_world: Callable[..., Any], plan_cohorts: Callable[..., None]
) -> None:
    plan_cohorts((0, 1, 2), (), (), (0, 1, 2))
    pace = Stub()
    world = make_world(LayerWise(), rounds=9, pace=pace)
    reports = world.run(4)
    assert [report.stage for report in reports] == [0, 0, 0, 1]
    assert [report.pace is None for report in reports] == [False, True, True, False]
    assert len(pace.seen) == 2


def test_calibration_at_the_end_of_a_stage_comes_with_the_early_end(make_world: Callable[..., Any]) -> None:
    world = make_world(LayerWise(), rounds=12, pace=Stub(1, 4), calibration=Calibration(batch_size=4, when="stage"))
    calibrated = [report.calibration_loss is not None for report in world.run(7)]
    assert calibrated == [False, True, False, False, True, False, False]


def test_progressive_stages_end_early_too(make_world: Callable[..., Any]) -> None:
    """The warm-up rounds are stages of their own."""
    world = make_world(Progressive(warm_up_rounds=2), rounds=13, pace=Stub(0, 1))
    assert [report.stage for report in world.run(6)] == [0, 1, 2, 2, 2, 3]
    assert world.server.stage_rounds == [1, 1, 3, 1, 0]


def test_the_real_controller_ends_stages_by_what_it_saw(make_world: Callable[..., Any]) -> None:
    world = make_world(LayerWise(), rounds=36, pace=quick(), method="Supervised", optimizer=partial(SGD, lr=0.05))
    controller, reports = quick(), []
    while not world.server.done:
        world.server.begin_round()
        if world.server.stage_rounds[world.server.stage.index] == 0:
            controller.begin_stage(world.server._followed(), torch.Generator())
        reports.append(world.server.end_round(world.results(world.server.current.cohort)))
        block = world.server.model.parts[f"block.{reports[-1].stage}"]
        stem = list(world.server.model.parts["stem"].parameters()) if reports[-1].stage == 0 else []
        assert repr(controller.observe([*stem, *block.parameters()])) == repr(reports[-1].pace)
    assert any(rounds < 12 for rounds in world.server.stage_rounds)
    assert sum(world.server.stage_rounds) == len(reports) == world.server.round
    for report in reports:
        capped = world.server.stage_rounds[report.stage] == 12
        last = report.round == max(other.round for other in reports if other.stage == report.stage)
        assert report.pace.freeze == last or (capped and last)


# --- resume in the middle of an adaptive stage


RESUMED: dict[str, dict[str, Any]] = {
    "plain": {},
    "BYOL and FedEMA": {"method": "BYOL", "start": FedEMA()},
    "MOON and dropout": {"method": "MoCoV3", "alignment": MoonAlignment(), "cohort_size": 2, "dropout": 0.2},
    "depth dropout": {"scheme": LayerWise(layer_budget=2, weight_transfer=True)},
    "devices": {
        "devices": [DeviceProfile(), DeviceProfile(macs_per_second=1e6), DeviceProfile(availability=0.7)],
        "deadline": Deadline(1.0, "send_finished_layers"),
        "server_optimizer": partial(SGD, lr=0.8, momentum=0.5),
    },
}


@pytest.mark.parametrize("variant", RESUMED)
def test_a_resumed_adaptive_run_continues_bit_for_bit(variant: str, make_world: Callable[..., Any]) -> None:
    """A checkpoint after each of the first rounds of the second stage, however early that began."""
    settings = {"scheme": LayerWise(), "rounds": 36, "sizes": (4, 4, 8)} | RESUMED[variant]

    def world() -> Any:
        selector = SmartFreezeSelector() if variant == "devices" else RoundRobinSelector()
        return make_world(**settings, pace=quick(), selector=selector)

    whole, checkpoints = world(), []
    while not whole.server.done:
        whole.round()
        if whole.server.stage_rounds[1] in (1, 2) and not whole.server.stage_rounds[2]:
            checkpoints.append(through_a_file(whole.checkpoint()))
    assert min(whole.server.stage_rounds) < 12
    checkpoint = checkpoints[-1]
    resumed = world()
    resumed.restore(checkpoint)
    while not resumed.server.done:
        resumed.round()
    assert not changed_parts(resumed.weights(), whole.weights())
    states = [continued.checkpoint() for continued in (resumed, whole)]
    for state in states:
        del state["server"]["seconds"], state["local"]["seconds"]
    assert repr(states[0]) == repr(states[1])


def test_another_controller_is_refused(make_world: Callable[..., Any]) -> None:
    stopped, other = make_world(pace=quick()), make_world()
    stopped.run(1)
    with pytest.raises(ValueError, match="made with pace BlockPerturbation, this run has NoneType"):
        other.server.load_state_dict(stopped.server.state_dict())
