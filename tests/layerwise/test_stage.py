import dataclasses

import pytest
import torch

from layerwise import LayerWise, Progressive, Stage, build_encoder, split_encoder


def test_names_of_a_layer_wise_stage():
    stage = Stage(2, (0, 1, 2), (2,), trains_stem=False, rounds=5)
    assert stage.frozen == (0, 1)
    assert stage.depth == 3
    assert stage.frozen_parts() == ["stem", "block.0", "block.1"]
    assert stage.trained_parts() == ["block.2", "output.2", "tail", "reshape.2"]


def test_names_of_a_stage_that_trains_all_it_has():
    stage = Stage(1, (0, 1), (0, 1), trains_stem=True, rounds=5)
    assert stage.frozen == ()
    assert stage.depth == 2
    assert stage.frozen_parts() == []
    assert stage.trained_parts() == ["stem", "block.0", "block.1", "output.1", "tail", "reshape.1"]


def test_frozen_stem_under_trained_blocks():
    stage = Stage(0, (0, 1), (0, 1), trains_stem=False, rounds=1)
    assert stage.frozen_parts() == ["stem"]
    assert stage.trained_parts()[0] == "block.0"


def test_a_stage_cannot_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Stage(0, (0,), (0,), True, 1).rounds = 2


@pytest.mark.parametrize(
    ("present", "trained", "trains_stem"),
    [((0, 1), (), False), ((0, 1), (0,), False), ((0, 1), (1,), True), ((0,), (1,), False)],
    ids=["trains nothing", "trains what is not last", "trains the stem over frozen blocks", "trains the absent"],
)
def test_impossible_stages(present, trained, trains_stem):
    with pytest.raises(AssertionError):
        Stage(0, present, trained, trains_stem, 1)


@pytest.mark.parametrize("scheme", [LayerWise(), Progressive(), LayerWise(2)], ids=["1", "progressive", "2"])
@pytest.mark.parametrize("kind", ["vit_spec", "token_spec"])
def test_both_halves_make_the_encoder_at_that_depth(scheme, kind, request, images, scramble):
    encoder = scramble(build_encoder(request.getfixturevalue(kind), 0)).eval()
    batch = images(encoder.spec)
    for stage in scheme.stages(4, 4):
        prefix, active = split_encoder(encoder, stage)
        encoder.depth = stage.depth
        assert torch.equal(active(prefix(batch)), encoder(batch))


def test_resnet_features_have_the_final_width_in_every_stage(resnet, images):
    resnet.eval()
    batch = images(resnet.spec)
    for stage, width in zip(LayerWise().stages(4, 4), [64, 128, 256, 512], strict=True):
        prefix, active = split_encoder(resnet, stage)
        resnet.depth = stage.depth
        plain = resnet(batch)
        assert plain.shape == (2, width)
        assert active(prefix(batch)).shape == (2, 512)
        assert torch.equal(active(prefix(batch)), resnet.reshape[stage.index](plain))


def test_the_last_resnet_stage_is_the_whole_encoder(resnet, images):
    batch = images(resnet.spec)
    prefix, active = split_encoder(resnet.eval(), LayerWise().stages(4, 4)[-1])
    assert torch.equal(active(prefix(batch)), resnet(batch))


def test_the_prefix_is_empty_where_the_stem_is_trained(vit, images):
    batch = images(vit.spec)
    for stage in (LayerWise().stages(4, 4)[0], *Progressive().stages(4, 4)):
        prefix, _ = split_encoder(vit, stage)
        assert len(prefix) == 0
        assert prefix(batch) is batch


def test_halves_share_the_encoders_tensors_and_hold_each_once(resnet):
    for stage in LayerWise().stages(4, 4):
        prefix, active = split_encoder(resnet, stage)
        parts = resnet.parts()
        for half, names in ((prefix, stage.frozen_parts()), (active, stage.trained_parts())):
            expected = [id(tensor) for name in names for tensor in parts[name].state_dict(keep_vars=True).values()]
            assert [id(tensor) for tensor in half.state_dict(keep_vars=True).values()] == expected
        both = [id(parameter) for half in (prefix, active) for parameter in half.parameters()]
        assert len(set(both)) == len(both)
