import json
from dataclasses import replace
from itertools import count, pairwise, product

import pytest
import torch
from torch import nn

from layerwise.memory import Action, MemoryPlan, compress_evenly, plan_memory, trace_step
from layerwise.memory.codec_speed import CodecSpeed, Speed
from layerwise.memory.moves import segments_of
from layerwise.memory.planning import SPACING
from layerwise.memory.recipe import find_recipe
from layerwise.memory.search import Search
from layerwise.memory.simulation import Simulation

SLOW_CODEC = CodecSpeed(Speed(1.0, 0.0), Speed(0.5, 0.0))


def trace_of(model, inputs, codec=SLOW_CODEC, seed=None):
    """Every operation takes a second by the clock, or what the seed gives."""
    trace = trace_step(lambda: model(inputs).square().sum(), model, count().__next__)
    if seed is not None:
        drawn = torch.rand(len(trace.ops), generator=torch.Generator().manual_seed(seed)).tolist()
        trace = replace(trace, ops=tuple(replace(op, seconds=s) for op, s in zip(trace.ops, drawn, strict=True)))
    return replace(trace, codec=codec)


@pytest.fixture(scope="module")
def chain():
    """Saved: input 0, hidden 1, GELU 2, hidden 3, GELU 4, output 5; 4 KiB, but 8 KiB for 1 and 2."""
    layers = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 32))
    return trace_of(layers, torch.randn(32, 32))


@pytest.fixture(scope="module")
def blocks():
    def block():
        return nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32))

    return trace_of(nn.Sequential(*(block() for _ in range(4))), torch.randn(4, 16, 32))


def test_chain_is_what_the_other_tests_think(chain):
    assert {value: chain.values[value].nbytes for value in chain.saved} == {
        0: 4096,
        1: 8192,
        2: 8192,
        3: 4096,
        4: 4096,
        5: 4096,
    }


def test_profile_by_hand(chain):
    """Recomputing both GELU outputs: their bytes are there only while their readers are differentiated."""
    kept = Simulation(chain).outcome({})
    assert kept.peak == kept.profile[0] == chain.saved_bytes == 32768
    outcome = Simulation(chain).outcome({2: Action("recompute"), 4: Action("recompute")})
    assert outcome.seconds == 2
    assert outcome.profile[0] == 32768 - 8192 - 4096
    moment = Simulation(chain).timeline.uses[4][0].first
    assert outcome.profile[moment] == 4096 * 2 + 8192 + 4096  # input, both hidden and GELU's output; 5 is gone


def test_compression_by_hand(chain):
    outcome = Simulation(chain).outcome({2: Action("compress", 4)})
    packed = 64 * 32 // 2 + 3 + 4 * 64 + 4 * 64
    assert Simulation(chain).packed_bytes(2, 4) == packed
    assert outcome.profile[0] == 32768 - 8192 + packed
    assert outcome.seconds == 1.5
    use = Simulation(chain).timeline.uses[2][0]
    assert outcome.profile[use.first] == 4096 + 8192 + packed + 8192


def test_recipes_by_hand(chain):
    """From the input: linear, GELU, linear; intermediate results leave as soon as they were read."""
    recipe = find_recipe(chain, [3], {0, 4, 5})
    assert recipe.ops == (0, 1, 2)
    assert recipe.leaves == {0}
    assert recipe.passed == {1, 2}
    assert recipe.seconds(chain) == 3
    assert recipe.peak_bytes(chain, restored=set()) == 8192 * 2
    assert recipe.peak_bytes(chain, restored={0}) == 8192 * 2
    assert find_recipe(chain, [3], {2}).ops == (2,)
    assert find_recipe(chain, [3], {4, 5}) is None


def test_what_draws_random_numbers_is_not_run_again():
    layers = nn.Sequential(nn.Linear(32, 64), nn.Dropout(0.5), nn.Linear(64, 64))
    trace = trace_of(layers, torch.randn(32, 32))
    (mask,) = (value for value in trace.saved if trace.values[value].mask)
    assert find_recipe(trace, [mask], {0}) is None
    plan = plan_memory(trace, trace.saved_bytes * 3 // 4)
    assert plan.actions.get(mask, Action("compress", 1)) == Action("compress", 1)


def test_segments_are_what_a_module_makes_and_alone_reads(blocks):
    segments = segments_of(blocks)
    assert set(segments) == {"model#0", "0#0", "1#0", "2#0", "3#0"}
    last_of_each = [max(segments[f"{n}#0"]) for n in range(4)]
    for number, members in enumerate(segments[f"{n}#0"] for n in range(4)):
        made = [str(blocks.ops[blocks.values[v].producer].func).split(".")[1] for v in members]
        assert made == ["native_layer_norm"] * 3 + ["addmm", "gelu"]
        assert blocks.values[members[-1]].producer < blocks.calls[f"{number}#0"][1]
    assert last_of_each == sorted(last_of_each)


def test_peak_falls_with_every_move(blocks):
    search = Search(blocks, True, (8, 4, 2))
    peaks = [state.peak for state in search.walk(search.start())]
    assert len(peaks) > 10
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[-1] < peaks[0] / 2


@pytest.mark.parametrize("actions", [("recompute", "compress"), ("recompute",), ("compress",)])
def test_more_budget_never_costs_more_time_unless_codes_get_wider(blocks, actions):
    plans = []
    for percent in range(100, 0, -4):
        try:
            plans.append(plan_memory(blocks, blocks.saved_bytes * percent // 100, actions))
        except ValueError:
            break
    assert len(plans) > 10
    assert all(plan.predicted_peak <= plan.budget_bytes for plan in plans)
    narrowest = [min((a.bits for a in plan.actions.values() if a.bits), default=8) for plan in plans]
    assert narrowest == sorted(narrowest, reverse=True)
    for (larger, wide), (smaller, narrow) in pairwise(zip(plans, narrowest, strict=True)):
        assert larger.added_seconds <= smaller.added_seconds or narrow < wide
    assert {action.kind for plan in plans for action in plan.actions.values()} == set(actions)


def test_narrow_codes_are_the_last_resort(blocks):
    def floor(bits):
        with pytest.raises(ValueError, match="at least") as refusal:
            plan_memory(blocks, 1, ("compress",), bits)
        return int(str(refusal.value).split("at least ")[1].split()[0])

    assert floor((8, 4, 2)) < floor((8, 4)) < floor((8,))
    for bits, narrowest in (((8,), 8), ((8, 4), 4), ((8, 4, 2), 2)):
        plan = plan_memory(blocks, floor(bits), ("compress",))
        assert min(action.bits for action in plan.actions.values()) == narrowest


def test_all_is_kept_where_the_budget_allows(blocks):
    for budget in (blocks.saved_bytes, 10 * blocks.saved_bytes):
        assert plan_memory(blocks, budget) == MemoryPlan(blocks.graph, budget, blocks.saved_bytes, 0.0, {})


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_uniform_compression(blocks, bits):
    plan = plan_memory(blocks, blocks.saved_bytes * 6 // 10, ("compress",), (bits,))
    assert set(plan.actions.values()) == {Action("compress", bits)}


def test_no_move_of_a_plan_is_idle(blocks):
    """Undoing any action alone would not fit the level below the budget any more."""
    simulation, budget = Simulation(blocks), blocks.saved_bytes // 2
    plan = plan_memory(blocks, budget)
    level = SPACING * budget
    for value, action in plan.actions.items():
        if action.segment is None:
            fewer = {other: kept for other, kept in plan.actions.items() if other != value}
            assert simulation.outcome(fewer).peak > level


OPTIONS = [None, Action("recompute"), Action("compress", 8)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("codec", [SLOW_CODEC, CodecSpeed(Speed(0.1, 0.0), Speed(0.05, 0.0))], ids=["slow", "fast"])
def test_greedy_against_the_exact_optimum(seed, codec):
    """Greedy gets as low as any plan, and over all budgets its added time is near that of the best plan."""
    layers = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 32))
    trace = trace_of(layers, torch.randn(32, 32), codec, seed)
    simulation = Simulation(trace)
    large = [value for value in trace.saved if trace.values[value].producer is not None]
    every = [{v: a for v, a in zip(large, choice, strict=True) if a} for choice in product(OPTIONS, repeat=len(large))]
    outcomes = [outcome for actions in every if (outcome := simulation.outcome(actions)) is not None]
    floor = min(outcome.peak for outcome in outcomes)
    ratios = []
    for budget in range(floor, trace.saved_bytes, 512):
        best = min(outcome.seconds for outcome in outcomes if outcome.peak <= budget)
        ratios.append((plan_memory(trace, budget, bits=(8,)).added_seconds + 1e-9) / (best + 1e-9))
    assert sum(ratios) / len(ratios) <= 1.4
    assert max(ratios) <= 3


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_must_be_positive(chain, budget):
    with pytest.raises(ValueError, match=f"budget_bytes must be above 0, got {budget}"):
        plan_memory(chain, budget)


def test_a_budget_that_cannot_be_met_names_the_floor(blocks):
    with pytest.raises(ValueError, match="the step needs at least") as refusal:
        plan_memory(blocks, 1000)
    floor = int(str(refusal.value).split("at least ")[1].split()[0])
    assert plan_memory(blocks, floor).predicted_peak == floor
    with pytest.raises(ValueError, match=f"at least {floor} bytes"):
        plan_memory(blocks, floor - 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"actions": ("swap",)}, "'recompute' and 'compress', got swap"),
        ({"bits": (8, 3)}, r"bits must be among \(8, 4, 2\), got \(8, 3\)"),
    ],
)
def test_unknown_choices_are_refused(chain, settings, message):
    with pytest.raises(ValueError, match=message):
        plan_memory(chain, 20000, **settings)


def test_plans_survive_json(blocks):
    plan = plan_memory(blocks, blocks.saved_bytes // 3)
    assert MemoryPlan.from_json(plan.to_json()) == plan
    assert json.loads(plan.to_json())["graph"] == blocks.graph


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "not a memory plan"),
        ("[]", "not a memory plan"),
        ("no json", "Expecting value"),
        ('{"graph": "a", "actions": {"1": {"kind": "swap"}}}', "'recompute' or 'compress', got 'swap'"),
        ('{"graph": "a", "actions": {"1": {"kind": "compress", "bits": 3}}}', r"one of \(8, 4, 2, 1\), got 3"),
        ('{"graph": "a", "actions": {"1": {"kind": "recompute", "bits": 4}}}', r"one of \(0,\), got 4"),
        ('{"graph": "a", "actions": {}}', "not a memory plan"),
    ],
)
def test_what_is_no_plan_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        MemoryPlan.from_json(text)


def test_one_width_for_all_reaches_what_no_smaller_budget_does(blocks):
    plan = compress_evenly(blocks, 4)
    assert {(action.kind, action.bits) for action in plan.actions.values()} == {("compress", 4)}
    assert plan.predicted_peak == plan.budget_bytes < 0.3 * blocks.saved_bytes
    with pytest.raises(ValueError, match=f"at least {plan.predicted_peak} bytes"):
        plan_memory(blocks, plan.predicted_peak - 1, ("compress",), (4,))
    with pytest.raises(ValueError, match="bits must be among"):
        compress_evenly(blocks, 3)
