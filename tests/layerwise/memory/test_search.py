"""Which actions are chosen, on a step that is made of numbers."""

import pytest

from layerwise.memory import Action, ChangedInPlaceError, InfeasibleBudgetError, PlanOutcome, Search

INPUT, CHEAP, PRODUCTS = 100, 300, 200
"""Bytes that each segment keeps as its input, to spare a cheap recomputation, and of products."""


def run_of(macs, runs):
    """A step of segments that differ in the operations of their forward pass only."""

    def held(action):
        products, cheap = (action.recompute != "all") * PRODUCTS, (action.recompute == "nothing") * CHEAP
        return int((INPUT + products + cheap) * (action.bits or 32) / 32)

    def run(actions):
        runs.append(dict(actions))
        bytes_ = {name: held(actions.get(name, Action())) for name in macs}
        peak = 1000 + sum(bytes_.values())
        inputs = dict.fromkeys(macs, INPUT)
        return PlanOutcome(peak, peak - 1000, 3 * sum(macs.values()), bytes_, inputs, macs)

    return run


@pytest.fixture
def search():
    return Search(run_of({"light": 10**6, "heavy": 10**9, "middle": 10**7}, []))


def test_a_step_that_fits_is_left_alone(search):
    assert search.fastest(2800).actions == {}
    assert search.fastest(2800).share == 0


def test_what_costs_least_comes_first(search):
    assert set(search.fastest(2799).actions.values()) == {Action("cheap")}
    assert search.fastest(1700).actions == {"light": Action("all"), "middle": Action("cheap"), "heavy": Action("cheap")}


def test_recomputation_alone_is_taken_where_it_does(search):
    """Its gradients are exact."""
    assert not any(action.bits for action in search.fastest(1300).actions.values())
    assert any(action.bits for action in search.fastest(1299).actions.values())


def test_narrow_widths_are_used_only_where_wide_ones_do_not_meet_the_budget(search):
    for budget in (1290, 1080, 1040, 1020):
        narrowest = min((action.bits for action in search.fastest(budget).actions.values() if action.bits), default=0)
        assert narrowest == (8 if budget >= 1075 else 4 if budget >= 1036 else 2)


def test_more_memory_never_takes_more_time(search):
    shares = [search.fastest(budget).share for budget in range(1300, 2801, 100)]
    assert shares == sorted(shares, reverse=True)


def test_the_least_can_be_reached_and_nothing_below(search):
    least = search.min_peak()
    assert search.fastest(least).peak == least
    with pytest.raises(InfeasibleBudgetError, match=f"{least} bytes can be reached") as error:
        search.fastest(least - 1)
    assert error.value.floor_bytes == least


def test_few_steps_are_run_and_none_twice():
    runs = []
    search = Search(run_of({f"segment {i}": 10**i for i in range(12)}, runs))
    for budget in (1300, 2000, 5000):
        search.fastest(1000 + budget)
    assert len(runs) < 30
    assert len({str(sorted(actions.items(), key=str)) for actions in runs}) == len(runs)


def test_one_width_everywhere_recomputes_nothing(search):
    assert set(search.evenly(4).actions.values()) == {Action(bits=4)}


def test_segments_that_change_results_in_place_are_recomputed_as_a_whole():
    run = run_of({"first": 10, "second": 10}, [])

    def strict(actions):
        if any(action.recompute == "cheap" for action in actions.values()):
            raise ChangedInPlaceError("in place")
        return run(actions)

    assert {action.recompute for action in Search(strict).fastest(1300).actions.values()} == {"all"}
