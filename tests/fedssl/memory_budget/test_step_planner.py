"""Plans of local steps: what they promise, and what a real step then holds."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from fedssl.memory_budget.planner import ActivationPlanner
from layerwise import EndToEnd, LayerWise, LiveBytes, Stage
from layerwise.memory import InfeasibleBudgetError, PlannedStep
from ssl_methods.alignment import GlobalAlignment, MoonAlignment

Make = Callable[..., ActivationPlanner]
WHOLE = EndToEnd().stages(2, 1)[0]


def between(planner: ActivationPlanner, share: float, stage: Stage = WHOLE, batch_size: int = 16) -> int:
    """A budget from the least (0) to the whole (1) that a step can take."""
    least, whole = planner.min_peak(stage, batch_size), planner.peak_without_plan(stage, batch_size)
    assert least < 0.9 * whole
    return int(least + share * (whole - least))


def measured_peak(planner: ActivationPlanner, budget: int, stage: Stage = WHOLE) -> int:
    """All bytes of tensors alive in the second step that is really run with the plan for a budget."""
    planned, predictor = planner.plan(stage, 16, budget), planner.predictor
    method = predictor.step.attach(predictor.model, stage)
    copies = predictor.step.begin_client(method, predictor.step.remember(method))
    optimizer = method.configure_optimizers()
    context: Any = PlannedStep(method, planned.actions) if planned else nullcontext()
    generator = torch.Generator().manual_seed(0)

    def step() -> int:
        moments = [value for values in optimizer.state.values() for value in values.values()]
        with LiveBytes([*method.parameters(), *method.buffers(), *copies, *moments]) as live:
            inputs = method.example_inputs((16, 1, 16, 16))
            for each in inputs:
                each.zero_() if each.dtype == torch.long else each.uniform_(generator=generator)
            with context:
                method.loss_of(inputs).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            method.after_step()
        return live.peak

    return [step() for _ in range(2)][1]


@pytest.mark.parametrize(
    "method", ["SimCLR", *(pytest.param(name, marks=pytest.mark.slow) for name in ("BYOL", "MoCoV3", "Supervised"))]
)
def test_a_real_step_keeps_to_the_budget(method: str, make_planner: Make) -> None:
    planner = make_planner(method)
    for share in (0.5, 0.0):
        budget = between(planner, share)
        planned = planner.plan(WHOLE, 16, budget)
        assert planned is not None
        assert 0.98 * planned.peak < measured_peak(planner, budget) <= planned.peak <= budget
        assert measured_peak(planner, 10**9) == planner.peak_without_plan(WHOLE, 16)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"alignment": GlobalAlignment()}, {"alignment": MoonAlignment(), "proximal": 0.1}]
)
def test_alignment_and_proximal_term_are_within_it(settings: dict[str, Any], make_planner: Make) -> None:
    planner = make_planner(**settings)
    budget = between(planner, 0.3)
    assert measured_peak(planner, budget) <= budget


def test_a_layer_wise_stage_can_be_planned_too(make_planner: Make) -> None:
    planner, stage = make_planner(), LayerWise().stages(2, 2)[1]
    budget = between(planner, 0.3, stage)
    assert measured_peak(planner, budget, stage) <= budget


def test_a_step_that_fits_has_no_plan(make_planner: Make) -> None:
    planner = make_planner()
    assert planner.plan(WHOLE, 16, planner.peak_without_plan(WHOLE, 16)) is None
    assert planner.plan(WHOLE, 16, float("inf")) is None
    assert planner.plan(WHOLE, 16, planner.peak_without_plan(WHOLE, 16) - 1) is not None


def test_what_is_promised_as_least_is_kept_and_less_is_refused(make_planner: Make) -> None:
    planner = make_planner()
    least = planner.min_peak(WHOLE, 16)
    assert planner.plan(WHOLE, 16, least) is not None
    with pytest.raises(
        InfeasibleBudgetError, match=rf"stage 1 with 16 images a step: .*\({least} bytes\) can be reached"
    ):
        planner.plan(WHOLE, 16, least // 4)


def test_smaller_batches_take_the_actions_of_the_largest_where_these_suffice(make_planner: Make) -> None:
    planner = make_planner()
    budget = between(planner, 0.3, batch_size=12)
    small, large = (planner.plan(WHOLE, size, budget) for size in (12, 16))
    assert small is not None
    assert large is not None
    assert small.actions == large.actions
    assert small.peak < large.peak <= budget
    assert planner.plan(WHOLE, 12, budget) is small


@pytest.mark.slow
def test_plans_do_not_depend_on_which_was_made_first(make_planner: Make) -> None:
    first, second = make_planner(), make_planner(anew=True)
    budget = between(first, 0.3)
    sizes = (16, 15)
    plans = [first.plan(WHOLE, size, budget) for size in sizes]
    again = [second.plan(WHOLE, size, budget) for size in reversed(sizes)][::-1]
    assert plans == again


def test_stages_of_equally_many_blocks_share_a_plan(make_planner: Make) -> None:
    planner = make_planner()
    stages = [Stage(2, present, present, False, 1) for present in ((0,), (1,))]
    budget = between(planner, 0.3, stages[0])
    assert planner.plan(stages[0], 16, budget) is planner.plan(stages[1], 16, budget)
