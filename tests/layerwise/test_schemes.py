import pytest

from layerwise import EndToEnd, LayerWise, Progressive, Stage

SIZES = [(6, 1), (6, 2), (6, 3), (6, 6), (6, [1, 2, 3]), (6, [6])]
SIZES += [(12, 1), (12, 2), (12, 3), (12, 4), (12, 6), (12, 12), (12, [5, 1, 4, 2])]


def ends_of(num_blocks, blocks_per_stage):
    if isinstance(blocks_per_stage, list):
        return [sum(blocks_per_stage[: i + 1]) for i in range(len(blocks_per_stage))]
    return list(range(blocks_per_stage, num_blocks + 1, blocks_per_stage))


@pytest.mark.parametrize(("num_blocks", "blocks_per_stage"), SIZES)
def test_layer_wise_trains_the_newest_blocks(num_blocks, blocks_per_stage):
    ends = ends_of(num_blocks, blocks_per_stage)
    stages = LayerWise(blocks_per_stage).stages(num_blocks, rounds=5 * len(ends))
    assert [stage.index for stage in stages] == list(range(len(ends)))
    for stage, start, end in zip(stages, [0, *ends], ends, strict=False):
        assert stage.present == tuple(range(end))
        assert stage.trained == tuple(range(start, end))
        assert stage.frozen == tuple(range(start))
        assert stage.trains_stem == (start == 0)
        assert stage.rounds == 5
    assert stages[-1].depth == num_blocks


@pytest.mark.parametrize(("num_blocks", "blocks_per_stage"), SIZES)
def test_progressive_trains_all_present_blocks(num_blocks, blocks_per_stage):
    ends = ends_of(num_blocks, blocks_per_stage)
    stages = Progressive(blocks_per_stage).stages(num_blocks, rounds=5 * len(ends))
    assert [stage.index for stage in stages] == list(range(len(ends)))
    for stage, end in zip(stages, ends, strict=True):
        assert stage.present == stage.trained == tuple(range(end))
        assert stage.frozen == ()
        assert stage.trains_stem
        assert stage.rounds == 5
    assert stages[-1].depth == num_blocks


@pytest.mark.parametrize("num_blocks", [6, 12])
def test_end_to_end_has_one_stage(num_blocks):
    blocks = tuple(range(num_blocks))
    assert EndToEnd().stages(num_blocks, rounds=7) == [Stage(0, blocks, blocks, True, 7)]


def test_six_blocks_by_two_written_out():
    assert LayerWise(2).stages(6, rounds=9) == [
        Stage(0, (0, 1), (0, 1), True, 3),
        Stage(1, (0, 1, 2, 3), (2, 3), False, 3),
        Stage(2, (0, 1, 2, 3, 4, 5), (4, 5), False, 3),
    ]


@pytest.mark.parametrize("scheme", [LayerWise, Progressive])
def test_rounds_can_be_listed(scheme):
    stages = scheme(2, rounds_per_stage=[1, 2, 6]).stages(6, rounds=9)
    assert [stage.rounds for stage in stages] == [1, 2, 6]


def test_choices_for_new_stages_are_off_at_first():
    for scheme in (LayerWise(), Progressive(), EndToEnd()):
        assert (scheme.weight_transfer, scheme.renew_heads) == (False, False)
    chosen = Progressive(weight_transfer=True, renew_heads=True)
    assert (chosen.weight_transfer, chosen.renew_heads) == (True, True)


def test_names():
    assert [s.name for s in (LayerWise, Progressive, EndToEnd)] == ["layer-wise", "progressive", "end-to-end"]


BAD = [
    ({"blocks_per_stage": [1] * 7}, 7, "7 stages are more than the encoder's 6 blocks"),
    ({"blocks_per_stage": 12}, 12, r"12 does not divide the encoder's 6 blocks; allowed: \[1, 2, 3, 6\]"),
    ({"blocks_per_stage": 4}, 12, r"4 does not divide the encoder's 6 blocks; allowed: \[1, 2, 3, 6\]"),
    ({"blocks_per_stage": 0}, 12, "0 does not divide"),
    ({"blocks_per_stage": -1}, 12, "-1 does not divide"),
    ({"blocks_per_stage": [1, 2]}, 12, r"\[1, 2\] must be positive and add up to the encoder's 6 blocks"),
    ({"blocks_per_stage": [5, 2]}, 12, r"\[5, 2\] must be positive and add up"),
    ({"blocks_per_stage": [0, 6]}, 12, r"\[0, 6\] must be positive"),
    ({"blocks_per_stage": [-1, 7]}, 12, r"\[-1, 7\] must be positive"),
    ({"blocks_per_stage": []}, 12, r"\[\] must be positive and add up"),
    ({}, 8, "rounds 8 cannot be shared equally by 6 stages; use a multiple of 6"),
    ({}, 3, "rounds 3 cannot be shared equally by 6 stages"),
    ({}, 0, "rounds must be at least 1, got 0"),
    ({}, -6, "rounds must be at least 1, got -6"),
    ({"rounds_per_stage": [6]}, 6, "has 1 entries for 6 stages"),
    ({"blocks_per_stage": 3, "rounds_per_stage": [1, 2, 3]}, 6, "has 3 entries for 2 stages"),
    ({"blocks_per_stage": 3, "rounds_per_stage": [3, 4]}, 6, r"\[3, 4\] must be positive and add up to rounds 6"),
    ({"blocks_per_stage": 3, "rounds_per_stage": [0, 6]}, 6, r"\[0, 6\] must be positive"),
    ({"blocks_per_stage": 3, "rounds_per_stage": [-1, 7]}, 6, r"\[-1, 7\] must be positive"),
]


@pytest.mark.parametrize("scheme", [LayerWise, Progressive])
@pytest.mark.parametrize(("settings", "rounds", "message"), BAD)
def test_what_does_not_add_up_is_refused(scheme, settings, rounds, message):
    with pytest.raises(ValueError, match=message):
        scheme(**settings).stages(6, rounds)


@pytest.mark.parametrize("rounds", [0, -1])
def test_end_to_end_needs_rounds(rounds):
    with pytest.raises(ValueError, match=f"rounds must be at least 1, got {rounds}"):
        EndToEnd().stages(6, rounds)
