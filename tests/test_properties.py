"""Properties that hold for every input, tried on inputs that hypothesis makes up and, if one fails, shrinks."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedssl import IID, BFloat16, Dirichlet, EightBit, LRSchedule, PowerLaw, Shards, TopK
from fedssl.costs.prediction import batches_of_epoch, lagrange_weights
from fedssl.data.clients import cut
from fedssl.data.datasets import ArrayImages
from fedssl.data.partition import Partitioner, apportion
from fedssl.protocol.compression import Compression, pack_update, unpack_update
from fedssl.protocol.messages import Task, content_id, flatten, unflatten
from fedssl.utils.units import format_bytes, parse_bytes
from layerwise import LayerWise, Progressive, Scheme, Stage

# The same examples in every run: a test that fails for one person fails for all.
settings.register_profile("fixed", derandomize=True, database=None, deadline=None, max_examples=40)
settings.load_profile("fixed")

names = st.text("abc.0", min_size=1, max_size=6)
seeds = st.integers(0, 2**31)
partitions = st.one_of(
    st.just(IID()),
    st.floats(0.01, 100).map(Dirichlet),
    st.floats(0, 4).map(PowerLaw),
    st.integers(1, 3).map(Shards),
)
schemes = st.one_of(
    st.builds(LayerWise, blocks_per_stage=st.integers(1, 4)),
    st.builds(Progressive, blocks_per_stage=st.integers(1, 4)),
    st.builds(LayerWise, layer_budget=st.integers(1, 12)),
)
rules = st.one_of(st.just(BFloat16()), st.integers(1, 300).map(EightBit), st.floats(0.001, 0.5).map(TopK))


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Of any shape up to three dimensions, also without elements, and of each type that travels."""
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    kind = draw(st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool]))
    generator = torch.Generator().manual_seed(draw(seeds))
    return (3 * torch.randn(shape, generator=generator)).to(kind)


parts = st.dictionaries(names, st.dictionaries(names, tensors(), min_size=1, max_size=3), max_size=3)


@given(partitions, st.lists(st.integers(0, 6), min_size=1, max_size=80), st.integers(1, 12), seeds)
def test_every_image_goes_to_one_client(partition: Partitioner, labels: list[int], clients: int, seed: int) -> None:
    pixels = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(len(labels), -1, -1, -1)
    images = ArrayImages("drawn", pixels, torch.tensor(labels), ())
    try:
        found = partition(images, clients, np.random.default_rng(seed))
    except ValueError:
        assume(False)  # too few images, which it says
    assert np.array_equal(np.sort(np.concatenate(found)), np.arange(len(labels)))
    assert min(map(len, found)) >= 1
    again = partition(images, clients, np.random.default_rng(seed))
    assert all(map(np.array_equal, found, again))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(0, 40), seeds)
def test_no_group_is_cut_in_two(groups: list[int], first: int, seed: int) -> None:
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))
    first = min(first, len(groups))
    one, other = cut(order, np.array(groups), first)
    assert sorted([*one.tolist(), *other.tolist()]) == list(range(len(groups)))
    assert len(one) >= first
    assert not {groups[i] for i in one} & {groups[i] for i in other}


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20).filter(sum), st.integers(0, 500))
def test_shares_are_rounded_to_their_sum(weights: list[int], total: int) -> None:
    shares = np.array(weights) / sum(weights)
    counts = apportion(shares, total)
    assert counts.sum() == total
    assert np.all(np.abs(counts - shares * total) < 1)


@given(schemes, st.integers(1, 12), st.integers(1, 60))
def test_stages_share_out_the_rounds_and_train_every_block(scheme: Scheme, blocks: int, rounds: int) -> None:
    try:
        stages = scheme.stages(blocks, rounds)
    except ValueError:
        assume(False)  # fewer rounds than stages, or a budget beyond the blocks
    assert sum(stage.rounds for stage in stages) == rounds
    assert min(stage.rounds for stage in stages) >= 1
    assert {block for stage in stages for block in stage.trained} == set(range(blocks))
    assert stages[0].trains_stem
    for earlier, later in pairwise(stages):
        assert set(earlier.present) <= set(later.present)


@given(st.integers(1, 2**50))
def test_a_size_is_read_as_it_is_written(size: int) -> None:
    assert parse_bytes(format_bytes(size)) == pytest.approx(size, rel=0.006)


@given(st.integers(0, 400), st.integers(2, 64))
def test_an_epoch_has_every_image_but_a_last_single_one(images: int, batch: int) -> None:
    seen = sum(size * count for size, count in batches_of_epoch(images, batch).items())
    assert images - seen == int(images % batch == 1)


@given(st.lists(st.integers(-99, 99), min_size=3, max_size=3), st.sets(st.integers(1, 512), min_size=3, max_size=3))
def test_three_points_determine_a_parabola(coefficients: list[int], points: set[int]) -> None:
    def value(at: int) -> int:
        return sum(coefficient * at**power for power, coefficient in enumerate(coefficients))

    weights = lagrange_weights(sorted(points), 1000)
    assert sum(w * value(at) for w, at in zip(weights, sorted(points), strict=True)) == Fraction(value(1000))


@given(st.integers(0, 5), st.floats(0, 1), st.integers(6, 60))
def test_a_schedule_warms_up_and_falls(warm_up: int, floor: float, rounds: int) -> None:
    schedule = LRSchedule(warm_up, floor)
    factors = [schedule.factor(done, rounds) for done in range(rounds)]
    assert all(0 < factor <= 1 for factor in factors) or floor == 0
    assert factors[:warm_up] == sorted(factors[:warm_up])
    assert factors[warm_up:] == sorted(factors[warm_up:], reverse=True)
    assert max(factors) == pytest.approx(1, abs=1e-9)
    assert min(factors[warm_up:]) >= floor - 1e-9


@given(parts)
def test_parts_survive_flattening(found: dict[str, dict[str, Tensor]]) -> None:
    again = unflatten(flatten(found))
    assert {name: [*part] for name, part in again.items()} == {name: [*part] for name, part in found.items()}
    assert all(again[name][key] is found[name][key] for name in found for key in found[name])


@given(st.dictionaries(names, tensors(), min_size=1, max_size=4), seeds)
def test_a_content_id_depends_on_content_alone(part: dict[str, Tensor], seed: int) -> None:
    shuffled = np.random.default_rng(seed).permutation([*part])
    assert content_id({name: part[name].clone() for name in shuffled}) == content_id(part)
    for name, tensor in part.items():
        if tensor.numel():
            changed = tensor.clone()
            changed.view(-1)[0] = ~changed.view(-1)[0] if tensor.dtype is torch.bool else changed.view(-1)[0] + 1
            assert content_id(part | {name: changed}) != content_id(part)


@given(parts, parts, st.lists(names, unique=True, max_size=3), st.floats(0, 1))
def test_an_order_survives_the_network(
    active: dict[str, dict[str, Tensor]], frozen: dict[str, dict[str, Tensor]], held: list[str], factor: float
) -> None:
    records = pytest.importorskip("fedssl.flower.records")
    task = Task(3, 5, Stage(1, (0, 2), (2,), False, 4), active, dict.fromkeys(held, "id"), frozen, {}, factor)
    back = records.decode_order(records.encode_order(records.Order(task, "run", "{}", 2**40)))
    assert (back.run_id, back.recipe, back.needed_bytes) == ("run", "{}", 2**40)
    assert vars(back.task) | {"active": 0, "frozen": 0} == vars(task) | {"active": 0, "frozen": 0}
    for there, here in ((back.task.active, active), (back.task.frozen, frozen)):
        assert flatten(there).keys() == flatten(here).keys()
        assert all(torch.equal(tensor, flatten(here)[key]) for key, tensor in flatten(there).items())


@given(rules, st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50), seeds)
def test_what_a_code_loses_is_kept_to_the_last_bit_or_nearly(rule: Compression, values: list[float], seed: int) -> None:
    change = torch.tensor(values)
    received = {"p": {"w": torch.zeros(len(values))}}
    sent, lost = pack_update(rule, {"p": {"w": change}}, received, {"p/w"}, {})
    arrived = unpack_update(rule, sent, received, {"p/w"})["p"]["w"]
    torch.testing.assert_close(arrived + lost["p"], change, rtol=1e-6, atol=1e-6 * float(change.abs().max()))
    assert lost["p"].norm() <= change.norm() * (1 + 1e-6), "a code is never worse than sending nothing"
    assert math.isfinite(float(arrived.sum()))
