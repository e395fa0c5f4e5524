"""The last layers as a scheme (CAFF, arXiv 2411.07826)."""

import pytest
import torch

from layerwise import EndToEnd, LastLayers, LayerWise, Stage, split_encoder


def test_choices_of_three_blocks():
    (stage,) = LastLayers().stages(3, 5)
    assert stage == Stage(0, (0, 1, 2), (0, 1, 2), True, 5)
    assert LastLayers().choices(stage) == [
        stage,
        Stage(0, (0, 1, 2), (1, 2), False, 5),
        Stage(0, (0, 1, 2), (2,), False, 5),
    ]


def test_the_most_is_end_to_end_training():
    assert LastLayers().stages(4, 2) == EndToEnd().stages(4, 2)


def test_a_single_block_has_a_single_choice():
    assert LastLayers().choices(LastLayers().stages(1, 1)[0]) == [Stage(0, (0,), (0,), True, 1)]


def test_other_schemes_leave_no_choice():
    for stage in LayerWise().stages(3, 3):
        assert LayerWise().choices(stage) == [stage]
    assert LayerWise().variants(3, 3) == [LayerWise().stages(3, 3)]


@pytest.mark.parametrize("trained", [1, 2, 3])
def test_head_norm_and_last_blocks_train_and_the_stem_only_with_all(vit, images, trained):
    scheme = LastLayers()
    stage = scheme.choices(scheme.stages(4, 1)[0])[4 - trained]
    prefix, active = split_encoder(vit, stage)
    with torch.no_grad():
        hidden = prefix(images(vit.spec))
    active(hidden).sum().backward()
    moved = {name for name, part in vit.parts().items() if any(p.grad is not None for p in part.parameters())}
    assert moved == {"tail", *(f"block.{i}" for i in range(4 - trained, 4))}


def test_depths():
    assert LastLayers().variants(4, 2) == [EndToEnd().stages(4, 2)]
    assert LastLayers([1, 3]).variants(4, 2) == [EndToEnd().stages(1, 2), EndToEnd().stages(3, 2)]
    with pytest.raises(ValueError, match=r"depths \[2, 6\] reach beyond the encoder's 4 blocks"):
        LastLayers([2, 6]).variants(4, 2)


@pytest.mark.parametrize("depths", [[], [0, 2], [3, 2], [2, 2]])
def test_impossible_depths(depths):
    with pytest.raises(ValueError, match="depths must be ascending numbers of at least 1"):
        LastLayers(depths)


def test_there_must_be_rounds():
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        LastLayers().stages(3, 0)
