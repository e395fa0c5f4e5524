import pytest
import torch
from torch import nn

from layerwise.memory import InfeasibleBudgetError, plan_memory, trace_step, transfer_plan, with_nominal_times
from layerwise.memory.nominal import BYTES_A_SECOND, CALL_SECONDS, FLOPS_A_SECOND


def chain(batch, width=64):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 8))
    inputs = torch.randn(batch, 32)
    return with_nominal_times(trace_step(lambda: model(inputs).square().mean(), model, lambda: 0.0))


def test_durations_by_hand():
    trace = chain(256)
    seconds = {}
    for op in trace.ops:
        seconds.setdefault(str(op.func), op.seconds)
    flops, moved = 2 * 256 * 32 * 64, 4 * (64 + 256 * 32 + 32 * 64 + 256 * 64)
    assert seconds["aten.addmm.default"] == pytest.approx(
        CALL_SECONDS + max(flops / FLOPS_A_SECOND, moved / BYTES_A_SECOND)
    )
    assert seconds["aten.gelu.default"] == pytest.approx(CALL_SECONDS + 2 * 4 * 256 * 64 / BYTES_A_SECOND)


def test_equal_steps_have_equal_plans():
    first, second = chain(256), chain(256)
    budget = first.saved_bytes // 2
    assert plan_memory(first, budget) == plan_memory(second, budget)


def test_a_plan_fits_another_batch_of_the_same_step():
    large, small = chain(256), chain(200)
    plan = plan_memory(large, large.saved_bytes // 2)
    moved = transfer_plan(plan, large, small)
    assert moved is not None
    assert moved.graph == small.graph
    assert moved.actions == plan.actions
    assert moved.predicted_peak < plan.predicted_peak
    assert transfer_plan(moved, small, chain(2000)) is None


def test_another_step_takes_no_plan():
    large, other = chain(256), chain(256, width=65)
    plan = plan_memory(large, large.saved_bytes // 2)
    with pytest.raises(ValueError, match="is for graph"):
        transfer_plan(plan, other, large)


def test_the_floor_is_a_number():
    trace = chain(256)
    with pytest.raises(InfeasibleBudgetError) as error:
        plan_memory(trace, 1)
    assert plan_memory(trace, error.value.floor_bytes).predicted_peak == error.value.floor_bytes
