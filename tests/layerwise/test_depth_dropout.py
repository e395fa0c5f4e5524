from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch

from layerwise import EncoderSpec, EndToEnd, LayerWise, Progressive, Stage, build_encoder, keep_layers, split_encoder

LAYER_WISE = Stage(7, tuple(range(8)), (7,), False, 3)
PROGRESSIVE = Stage(7, tuple(range(8)), tuple(range(8)), True, 3)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("budget", range(2, 8))
def test_first_and_trained_blocks_stay(budget):
    for seed in range(20):
        kept = keep_layers(LAYER_WISE, budget, rng(seed))
        assert len(kept.present) == budget
        assert kept.present[0] == 0
        assert kept.trained == (7,)
        assert list(kept.present) == sorted(set(kept.present))
        assert (kept.index, kept.rounds, kept.trains_stem, kept.depth) == (7, 3, False, 8)


@pytest.mark.parametrize("budget", range(2, 8))
def test_all_kept_blocks_are_trained_where_all_present_ones_are(budget):
    for seed in range(20):
        kept = keep_layers(PROGRESSIVE, budget, rng(seed))
        assert kept.present == kept.trained
        assert (len(kept.present), kept.present[0], kept.present[-1]) == (budget, 0, 7)
        assert kept.trains_stem
        assert kept.frozen == ()


@pytest.mark.parametrize("stage", [LAYER_WISE, PROGRESSIVE])
@pytest.mark.parametrize("budget", [8, 9, 100])
def test_a_stage_within_the_budget_is_left_alone_and_nothing_drawn(stage, budget):
    generator = rng()
    assert keep_layers(stage, budget, generator) is stage
    assert generator.random() == rng().random()


def test_example_of_the_paper():
    """L = 5, budget 3: 1-2-4 is a path of the fourth phase, one of {2, 3, 4} is kept in the fifth."""
    stages = LayerWise(layer_budget=3).stages(5, 5)
    paths = [{keep_layers(stage, 3, rng(seed)).present for seed in range(60)} for stage in stages]
    assert paths[2] == {(0, 1, 2)}
    assert paths[3] == {(0, 1, 3), (0, 2, 3)}
    assert paths[4] == {(0, 1, 4), (0, 2, 4), (0, 3, 4)}


@pytest.mark.parametrize("stage", [LAYER_WISE, PROGRESSIVE])
def test_every_subset_is_equally_likely(stage):
    """Three of the blocks 1 to 6: 20 subsets; 2000 draws of each on average have a standard deviation of 44."""
    generator = rng(3)
    counts = Counter(keep_layers(stage, 5, generator).present[1:-1] for _ in range(40_000))
    assert counts.keys() == set(combinations(range(1, 7), 3))
    assert all(abs(count - 2000) < 200 for count in counts.values())


def test_the_generator_alone_decides():
    draws = [[keep_layers(LAYER_WISE, 4, generator).present for _ in range(20)] for generator in (rng(1), rng(1))]
    assert draws[0] == draws[1]
    assert len(set(draws[0])) > 1


def test_several_new_blocks_stay_together():
    stage = LayerWise(3).stages(9, 9)[-1]
    kept = keep_layers(stage, 5, rng())
    assert kept.trained == (6, 7, 8)
    assert len(kept.frozen) == 2


@pytest.mark.parametrize(("stage", "budget"), [(LAYER_WISE, 1), (PROGRESSIVE, 1), (LayerWise(4).stages(8, 2)[1], 4)])
def test_too_small_a_budget(stage, budget):
    with pytest.raises(ValueError, match=f"layer budget {budget} is less than the"):
        keep_layers(stage, budget, rng())


@pytest.mark.parametrize("scheme", [LayerWise, Progressive])
@pytest.mark.parametrize("kind", ["vit_spec", "token_spec"])
def test_kept_blocks_are_chained_directly(scheme, kind, request, images, scramble):
    encoder = scramble(build_encoder(request.getfixturevalue(kind), 0)).eval()
    batch, chosen = images(encoder.spec), scheme(layer_budget=3)
    last = chosen.stages(4, 4)[-1]
    seen = set()
    for seed in range(8):
        stage = chosen.for_client(last, rng(seed))
        hidden = encoder.stem(batch)
        for block in stage.present:
            hidden = encoder.blocks[block](hidden)
        prefix, active = split_encoder(encoder, stage)
        assert torch.equal(active(prefix(batch)), encoder.tail(hidden))
        assert not torch.equal(encoder.tail(hidden), encoder(batch))
        seen.add(stage.present)
    assert seen == {(0, 1, 3), (0, 2, 3)}


def test_parts_of_a_client_name_only_what_it_holds():
    kept = keep_layers(LAYER_WISE, 2, rng())
    assert kept.frozen_parts() == ["stem", "block.0"]
    assert kept.trained_parts() == ["block.7", "output.7", "tail", "reshape.7"]


@pytest.mark.parametrize("scheme", [LayerWise(), Progressive(), EndToEnd()])
def test_without_a_budget_nothing_is_left_out(scheme):
    for stage in scheme.stages(4, 4):
        assert scheme.for_client(stage, rng()) is stage


def test_warm_up_rounds_leave_out_frozen_blocks_only():
    scheme = Progressive(2, layer_budget=4, warm_up_rounds=1)
    warm_up = scheme.stages(8, 7)[-2]
    kept = scheme.for_client(warm_up, rng())
    assert kept.trained == (6, 7)
    assert len(kept.present) == 4
    assert not kept.trains_stem


@pytest.mark.parametrize(
    ("scheme", "rounds", "least"),
    [
        (LayerWise(layer_budget=1), 6, 2),
        (LayerWise(2, layer_budget=2), 6, 3),
        (LayerWise([2, 3, 1], layer_budget=3), 6, 4),
        (Progressive(layer_budget=1), 6, 2),
        (Progressive(3, layer_budget=0), 6, 2),
        (Progressive(3, layer_budget=3, warm_up_rounds=3), 9, 4),
    ],
)
def test_a_budget_must_hold_what_is_always_kept(scheme, rounds, least):
    with pytest.raises(ValueError, match=f"layer_budget {scheme.layer_budget} must be at least {least}"):
        scheme.stages(6, rounds)
    scheme.layer_budget = least
    generator = rng()
    for stage in scheme.stages(6, rounds):
        assert len(scheme.for_client(stage, generator).present) <= least


def test_blocks_must_be_alike(vit, resnet):
    message = "layer_budget needs blocks of one shape.*block 1 of resnet18 differs from block 0"
    for scheme in (LayerWise, Progressive):
        scheme(layer_budget=3).check(vit)
        scheme().check(resnet)
        with pytest.raises(ValueError, match=message):
            scheme(layer_budget=3).check(resnet)


def test_resnet_stages_of_equal_width_still_differ_by_their_shortcuts():
    encoder = build_encoder(EncoderSpec("resnet18", 32, 3, options={"channels": [64] * 4}), 0)
    with pytest.raises(ValueError, match="differs from block 0"):
        LayerWise(layer_budget=2).check(encoder)
