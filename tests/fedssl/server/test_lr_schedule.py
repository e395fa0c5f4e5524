"""Learning rate over the rounds and over batch sizes, and clipping of local steps."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from fedssl.client.local_step import LocalStep
from fedssl.costs.prediction import StepPredictor
from fedssl.server.aggregation import SCAFFOLD
from fedssl.server.calibration import Calibration
from fedssl.server.lr_schedule import LRSchedule, linear_scaling
from layerwise import LayerWise, PaceReading, Progressive
from ssl_methods.alignment import GlobalAlignment

STAGE_COSINE = LRSchedule(cosine_to=0.0, over="stage")


def factors(schedule: LRSchedule, total: int) -> list[float]:
    return [schedule.factor(done, total) for done in range(total)]


def test_by_hand() -> None:
    assert factors(LRSchedule(), 3) == [1, 1, 1]
    assert factors(LRSchedule(warm_up=3), 5) == [0.25, 0.5, 0.75, 1, 1]
    assert factors(LRSchedule(cosine_to=0.0), 4) == pytest.approx(
        [1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4]
    )
    assert factors(LRSchedule(warm_up=1, cosine_to=0.1), 3) == pytest.approx([0.5, 1, 0.55])


def test_the_cosine_is_pytorchs() -> None:
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference, rates = CosineAnnealingLR(optimizer, T_max=7, eta_min=0.01), []
    for _ in range(7):
        rates.append(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()
    assert factors(LRSchedule(cosine_to=0.01), 7) == pytest.approx(rates)


def test_over_the_run_and_anew_in_each_stage() -> None:
    stages = LayerWise().stages(2, 4)
    places = [(index, done) for index in range(2) for done in range(2)]
    assert [LRSchedule(cosine_to=0.0).in_stage(stages, *place) for place in places] == factors(
        LRSchedule(cosine_to=0.0), 4
    )
    assert [STAGE_COSINE.in_stage(stages, *place) for place in places] == pytest.approx([1, 0.5, 1, 0.5])


def test_block_warm_up_has_the_full_rate_and_is_not_counted() -> None:
    """ProgFed: two rounds, one of warm-up, two rounds."""
    stages = Progressive(warm_up_rounds=1).stages(2, 5)
    places = [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)]
    seen = [LRSchedule(cosine_to=0.0).in_stage(stages, *place) for place in places]
    cosine = factors(LRSchedule(cosine_to=0.0), 4)
    assert seen == [*cosine[:2], 1, *cosine[2:]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(LRSchedule, warm_up=-1), "warm_up must be at least 0, got -1"),
        (partial(LRSchedule, cosine_to=1.5), "cosine_to must be from 0 to 1, got 1.5"),
        (partial(LRSchedule, cosine_to=math.nan), "cosine_to must be from 0 to 1, got nan"),
        (partial(LRSchedule, over="epoch"), "over must be 'run' or 'stage', got 'epoch'"),
        (partial(linear_scaling, SGD, 8, 0), "base_batch_size must be at least 1, got 0"),
    ],
)
def test_wrong_settings_are_refused(make: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_warm_up_without_end_is_refused(make_world: Callable[..., Any]) -> None:
    make_world(rounds=6, lr_schedule=LRSchedule(warm_up=5))
    with pytest.raises(ValueError, match="warm_up must be below the 6 rounds of a run, got 6"):
        make_world(rounds=6, lr_schedule=LRSchedule(warm_up=6))
    with pytest.raises(ValueError, match=r"below the 2 rounds of a stage, got 2: lower --model\.lr_schedule\.warm_up"):
        make_world(rounds=6, lr_schedule=LRSchedule(warm_up=2, over="stage"))
    with pytest.raises(ValueError, match="gradient_clip_norm must be above 0, got 0"):
        make_world(gradient_clip_norm=0.0)


def test_every_group_is_scaled_to_the_batch() -> None:
    def two_groups(parameters: Any) -> SGD:
        return SGD([{"params": parameters}, {"params": [nn.Parameter(torch.zeros(1))], "lr": 0.5}], lr=0.1)

    made = linear_scaling(two_groups, 512, 256)([nn.Parameter(torch.zeros(1))])
    assert [group["lr"] for group in made.param_groups] == [0.2, 1.0]
    assert made.defaults["lr"] == 0.2
    assert linear_scaling(two_groups, 512, None) is two_groups


def rates(run: Callable[[], Any]) -> list[float]:
    """Learning rates of all optimizer steps but the server's, whose rate is 1."""
    seen: list[float] = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: seen.append(optimizer.param_groups[0]["lr"]))
    try:
        run()
    finally:
        hook.remove()
    return [rate for rate in seen if rate != 1]


def test_a_rate_that_is_the_users_tensor_stays_as_it_is() -> None:
    rate = torch.tensor(0.1)
    for _ in range(2):
        scaled = linear_scaling(partial(SGD, lr=rate), 512, 256)([nn.Parameter(torch.ones(1))])
        assert float(scaled.param_groups[0]["lr"]) == pytest.approx(0.2)
    assert float(rate) == pytest.approx(0.1)


def test_clients_and_calibration_follow_it(make_world: Callable[..., Any]) -> None:
    """Two clients of one step each and a calibration of one, in rounds 1 and 2 of each of three stages."""
    settings = {"rounds": 6, "sizes": (4, 4), "calibration": Calibration(1, 64), "lr_schedule": STAGE_COSINE}
    world = make_world(**settings)
    assert rates(lambda: world.run(6)) == pytest.approx(([0.01] * 3 + [0.005] * 3) * 3)
    assert world.server.current.lr_factor == pytest.approx(0.5)


class EndsEarly:
    """A pace controller that ends every stage after a round."""

    def begin_stage(self, *_: Any) -> None: ...

    def observe(self, *_: Any) -> PaceReading:
        return PaceReading(None, None, None, 1, True)


def test_a_stage_that_ends_early_counts_whole(make_world: Callable[..., Any]) -> None:
    world = make_world(rounds=6, pace=EndsEarly(), lr_schedule=LRSchedule(cosine_to=0.0))
    cosine = factors(LRSchedule(cosine_to=0.0), 6)
    assert [report.lr_factor for report in world.run(3)] == [cosine[0], cosine[2], cosine[4]]


def test_a_resumed_run_continues_bit_for_bit(make_world: Callable[..., Any]) -> None:
    settings = {"lr_schedule": LRSchedule(1, 0.0), "gradient_clip_norm": 0.5, "sizes": (4, 4)}
    whole, first, second = (make_world(aggregation=SCAFFOLD(), **settings) for _ in range(3))
    whole.run(3)
    first.run(1)
    second.restore(first.checkpoint())
    second.run(2)
    weights = whole.weights()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in second.weights().items())


def test_constant_is_what_it_was(make_world: Callable[..., Any]) -> None:
    """Without settings, with all of them at their defaults, and with a limit that no gradient reaches."""
    weights = []
    for settings in ({}, {"lr_schedule": LRSchedule(cosine_to=1.0)}, {"gradient_clip_norm": 1e9}):
        world = make_world(**settings)
        world.run(2)
        weights.append(world.weights())
    for other in weights[1:]:
        assert all(torch.equal(tensor, other[key]) for key, tensor in weights[0].items())


def test_the_final_gradient_is_clipped(make_world: Callable[..., Any]) -> None:
    """Alignment, proximal term and SCAFFOLD's correction are in it: no step of SGD is longer than lr x norm."""
    settings = {"aggregation": SCAFFOLD(), "alignment": GlobalAlignment(100.0), "proximal": 10.0, "sizes": (8, 8)}
    world = make_world(gradient_clip_norm=0.25, optimizer=partial(SGD, lr=0.01), **settings)
    lengths: list[float] = []

    def note(optimizer: Any, *_: Any) -> None:
        grads = [p.grad for p in optimizer.param_groups[0]["params"] if p.grad is not None]
        lengths.append(float(torch.stack([grad.norm() for grad in grads]).norm()))

    hook = register_optimizer_step_post_hook(note)
    try:
        world.run(2)
    finally:
        hook.remove()
    of_clients = lengths[:4] + lengths[5:9]  # the fifth and the tenth are the server's
    assert of_clients == pytest.approx([0.25] * 8, rel=1e-4)


def test_clipping_is_in_the_predicted_step(make_model: Callable[..., Any]) -> None:
    """It adds norms of tensors, and holds no gradient twice."""
    stage = LayerWise().stages(3, 3)[-1]
    plain, clipped = (StepPredictor(make_model(), LocalStep(clip_norm=norm)).run(stage, 4) for norm in (None, 1e-3))
    assert clipped.macs == plain.macs
    assert plain.peak <= clipped.peak <= plain.peak + 4096
