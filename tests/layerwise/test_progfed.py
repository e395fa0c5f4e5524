"""Warm-up and schedule of ProgFed (arXiv 2110.05323), options of the progressive scheme."""

from itertools import pairwise

import pytest
import torch

from layerwise import Progressive, Stage, build_encoder, grew, layer_shares, split_encoder, transfer_weights


def test_warm_up_trains_the_new_blocks_only():
    assert Progressive(2, warm_up_rounds=3).stages(6, 12) == [
        Stage(0, (0, 1), (0, 1), True, 2),
        Stage(1, (0, 1, 2, 3), (2, 3), False, 3, full_lr=True),
        Stage(2, (0, 1, 2, 3), (0, 1, 2, 3), True, 2),
        Stage(3, (0, 1, 2, 3, 4, 5), (4, 5), False, 3, full_lr=True),
        Stage(4, (0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 5), True, 2),
    ]


@pytest.mark.parametrize(
    ("num_stages", "rounds", "expected"),
    [
        (3, 1500, [250, 250, 1000]),  # EMNIST
        (4, 2000, [250, 250, 250, 1250]),  # CIFAR-10
        (4, 3000, [375, 375, 375, 1875]),  # CIFAR-100
        (4, 104, [13, 13, 13, 65]),
        (1, 6, [6]),
    ],
)
def test_long_last_stage_as_published(num_stages, rounds, expected):
    stages = Progressive(long_last_stage=True).stages(num_stages, rounds)
    assert [stage.rounds for stage in stages] == expected
    assert sum(expected) == rounds


def test_warm_up_rounds_count_as_rounds_of_the_run():
    """CIFAR-100: 25 rounds after each of 3 growths, besides T = 3000."""
    stages = Progressive(long_last_stage=True, warm_up_rounds=25).stages(4, 3075)
    assert [stage.rounds for stage in stages] == [375, 25, 375, 25, 375, 25, 1875]
    assert [stage.index for stage in stages] == list(range(7))
    assert [stage.trains_stem for stage in stages] == [True, False, True, False, True, False, True]


def test_rounds_may_be_listed_beside_warm_up():
    stages = Progressive(2, rounds_per_stage=[1, 2, 6], warm_up_rounds=1).stages(6, 11)
    assert [stage.rounds for stage in stages] == [1, 1, 2, 1, 6]


def test_a_single_stage_never_grows():
    assert Progressive(6, warm_up_rounds=4).stages(6, 5) == Progressive(6).stages(6, 5)


@pytest.mark.parametrize(
    ("settings", "rounds", "message"),
    [
        ({"long_last_stage": True}, 12, r"rounds 12 .* with a long last stage by 4 stages; .* of 8 \(8 or 16\)"),
        ({"long_last_stage": True, "warm_up_rounds": 1}, 16, r"multiple of 8 and 3 warm-up rounds \(11 or 19\)"),
        ({"warm_up_rounds": 2}, 8, r"rounds 8 .* equally by 4 stages; use a multiple of 4 and 6 warm-up.*\(10\)"),
        ({"warm_up_rounds": 9}, 8, r"use a multiple of 4 and 27 warm-up rounds \(31\)"),
        ({"warm_up_rounds": 1, "rounds_per_stage": [2, 2, 2, 2]}, 8, "add up to rounds 5, besides 3 warm-up rounds"),
    ],
)
def test_rounds_that_cannot_be_shared(settings, rounds, message):
    with pytest.raises(ValueError, match=message):
        Progressive(**settings).stages(4, rounds)


def test_settings_that_exclude_each_other():
    with pytest.raises(ValueError, match=r"long_last_stage shares the rounds: it excludes rounds_per_stage \[1, 2\]"):
        Progressive(long_last_stage=True, rounds_per_stage=[1, 2])
    with pytest.raises(ValueError, match="warm_up_rounds must be at least 0, got -1"):
        Progressive(warm_up_rounds=-1)


def test_growth_is_where_blocks_arrive():
    stages = Progressive(warm_up_rounds=1).stages(3, 8)
    assert [grew(*pair) for pair in pairwise(stages)] == [True, False, True, False]


def test_weights_are_transferred_once_where_warm_up_begins(vit_spec):
    encoder = build_encoder(vit_spec, 0)
    stages = Progressive(2, warm_up_rounds=1).stages(4, 3)
    assert [transfer_weights(encoder, *pair) for pair in pairwise(stages)] == [[2, 3], []]


def test_warm_up_leaves_old_blocks_and_stem_without_gradient(vit, images):
    stage = Progressive(2, warm_up_rounds=1).stages(4, 3)[1]
    prefix, active = split_encoder(vit, stage)
    with torch.no_grad():
        hidden = prefix(images(vit.spec))
    active(hidden).sum().backward()
    trained = {name for name, part in vit.parts().items() if any(p.grad is not None for p in part.parameters())}
    assert trained == {"block.2", "block.3", "tail"}


def test_share_of_end_to_end_training(vit):
    """Four equal stages: (1/8)(1/4 + 2/4 + 3/4) + 5/8 = 13/16 of all passes and bytes."""
    stages = Progressive(long_last_stage=True).stages(4, 16)
    shares = layer_shares(vit, stages)
    for key in ("communication", "computation"):
        mean = sum(stage.rounds * getattr(share, key) for stage, share in zip(stages, shares, strict=True)) / 16
        assert mean == pytest.approx(13 / 16)


def test_warm_up_rounds_cost_less(vit):
    """Two present blocks of four, one trained: (2 + 1) / 8 of the traffic, (2 + 2) / 12 of the operations."""
    warm_up = layer_shares(vit, Progressive(warm_up_rounds=1).stages(4, 7))[1]
    assert warm_up.communication == pytest.approx(3 / 8)
    assert warm_up.computation == pytest.approx(4 / 12)
