import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from layerwise import EncoderSpec, LayerWise, Progressive, build_encoder, keep_layers, paper_cost, split_encoder
from layerwise.output_modules import TokenStandIn
from layerwise.paper_cost import part_costs

VIT = {"patch_size": 4, "depth": 4, "embed_dim": 32, "num_heads": 2}
AVERAGE = {"global_pool": "avg", "class_token": False}
MODELS = {
    "resnet": ("resnet18", 16, 3, {"channels": [16, 32, 64, 128]}),
    "dilated": ("resnet26", 32, 3, {"layers": (1, 1, 1, 1), "channels": [8, 16, 32, 64], "output_stride": 8}),
    "token": ("vit_tiny_patch16_224", 16, 1, VIT),
    "average": ("vit_tiny_patch16_224", 16, 1, VIT | AVERAGE),
    "registers": ("vit_tiny_patch16_224", 16, 3, VIT | {"reg_tokens": 2}),
}
SPECS = {
    kind: EncoderSpec(name, size, channels, options=options, output="convolution")
    for kind, (name, size, channels, options) in MODELS.items()
}
SPECS["small stem"] = replace(SPECS["resnet"], image_size=8, in_channels=1, stem="small")


@pytest.fixture(params=SPECS)
def encoder(request):
    return build_encoder(SPECS[request.param], seed=0).eval()


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_every_stage_has_features_of_the_final_width(encoder, images):
    batch = images(encoder.spec)
    for stage in LayerWise().stages(4, 4):
        prefix, active = split_encoder(encoder, stage)
        hidden = encoder.stem(batch)
        for block in stage.present:
            hidden = encoder.blocks[block](hidden)
        for stand_in in encoder.outputs[stage.index]:
            hidden = stand_in(hidden)
        assert len(encoder.outputs[stage.index]) == 3 - stage.index
        assert active(prefix(batch)).shape == (2, encoder.feature_dim)
        torch.testing.assert_close(active(prefix(batch)), encoder.tail(hidden))


def test_evaluation_and_the_last_stage_have_no_stand_ins(encoder, images):
    batch = images(encoder.spec)
    prefix, active = split_encoder(encoder, LayerWise().stages(4, 4)[-1])
    assert torch.equal(active(prefix(batch)), encoder(batch))
    encoder.depth = 2
    assert encoder(batch).shape == (2, encoder.widths[1])


def test_stand_ins_follow_the_shapes_of_the_stages_that_they_stand_for(encoder, images):
    hidden = light = encoder.blocks[0](encoder.stem(images(encoder.spec)))
    for block, stand_in in zip(list(encoder.blocks)[1:], encoder.outputs[0], strict=True):
        hidden, light = block(hidden), stand_in(light)
        assert light.shape == hidden.shape


def test_entries_share_their_stand_ins_also_in_a_copy(encoder):
    for each in (encoder, copy.deepcopy(encoder)):
        first = list(each.outputs[0])
        assert [list(entry) for entry in each.outputs] == [first, first[1:], first[2:], []]
    assert copy.deepcopy(encoder).outputs[0][0] is not encoder.outputs[0][0]


def test_no_reshape_layer_is_needed(encoder):
    assert all(isinstance(layer, nn.Identity) for layer in encoder.reshape)


def test_weights_can_be_stored_and_read_back(encoder, tmp_path):
    torch.save(encoder.state_dict(), tmp_path / "weights.pt")
    other = build_encoder(encoder.spec, seed=1)
    assert not torch.equal(next(other.outputs[0].parameters()), next(encoder.outputs[0].parameters()))
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, encoder.state_dict()[name])
    assert other.outputs[1][0] is other.outputs[0][1]


def test_the_newest_output_is_trained_and_nothing_of_the_others(encoder, images):
    """A stage's gradients reach every weight of its stand-ins, and the stand-in of a block that arrived gets none."""
    stage = LayerWise().stages(4, 4)[1]
    prefix, active = split_encoder(encoder, stage)
    with torch.no_grad():
        hidden = prefix(images(encoder.spec))
    active(hidden).square().sum().backward()
    assert stage.trained_parts()[:2] == ["block.1", "output.1"]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in encoder.outputs[1].parameters())
    assert all(parameter.grad is None for parameter in encoder.outputs[0][0].parameters())


def test_resnet_convolutions():
    encoder = build_encoder(SPECS["resnet"], seed=0)
    described = [
        (c.in_channels, c.out_channels, c.kernel_size, c.stride, c.padding, c.bias) for c in encoder.outputs[0]
    ]
    assert described == [
        (16, 32, (3, 3), (2, 2), (1, 1), None),
        (32, 64, (3, 3), (2, 2), (1, 1), None),
        (64, 128, (3, 3), (2, 2), (1, 1), None),
    ]
    for convolution in encoder.outputs[0]:
        assert convolution.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * convolution.out_channels)), rel=0.05)
    assert [c.stride for c in build_encoder(SPECS["dilated"], seed=0).outputs[0]] == [(2, 2), (1, 1), (1, 1)]


def test_token_stand_in_by_hand():
    """One channel, a 1 x 2 grid behind a class token; only the row in the middle of the kernel meets a patch."""
    stand_in = TokenStandIn(1, (1, 2))
    with torch.no_grad():
        stand_in.conv.weight.copy_(torch.arange(9.0).view(1, 1, 3, 3))
        stand_in.linear.weight.fill_(2.0)
        stand_in.linear.bias.fill_(1.0)
    tokens = torch.tensor([[[10.0], [1.0], [2.0]]])
    mixed = [4 * 1 + 5 * 2, 3 * 1 + 4 * 2]
    after = [10 + (14 + 11) / 2, 1 + mixed[0], 2 + mixed[1]]
    assert stand_in(tokens).flatten().tolist() == [value + 2 * value + 1 for value in after]


def test_patches_keep_their_place_in_the_grid():
    """A kernel that looks one patch to the left moves every column by one, not the rows."""
    stand_in = TokenStandIn(1, (2, 3))
    with torch.no_grad():
        stand_in.conv.weight.zero_()[0, 0, 1, 0] = 1.0
        stand_in.linear.weight.zero_()
        patches = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
        moved = stand_in(patches.view(1, 6, 1)).view(2, 3) - patches
    assert moved.tolist() == [[0, 1, 2], [0, 4, 5]]


def test_stand_ins_are_light():
    encoder = build_encoder(EncoderSpec(options={"patch_size": 4, "depth": 2}, output="convolution"), seed=0)
    assert (parameters(encoder.outputs[0]), parameters(encoder.blocks[1])) == (38_784, 444_864)
    costs = part_costs(encoder)
    assert costs["output.0"].macs == 64 * (9 * 192 + 192 * 192)
    assert costs["output.0"].macs < 0.1 * costs["block.1"].macs


def test_costs_of_the_paper_convention_count_them(encoder):
    parts = part_costs(encoder)
    first, *_, last = LayerWise().stages(4, 4)
    cost = paper_cost(encoder, [first], {}, 1, 1)
    names = ["stem", "block.0", "output.0"]
    assert cost.macs == 3 * sum(parts[name].macs for name in names)
    assert cost.up_bytes == sum(parts[name].size for name in names)
    assert parts[f"output.{last.index}"].size == 0


@pytest.mark.parametrize("kind", ["resnet", "token"])
def test_other_weights_stay_as_they_were(kind):
    spec = SPECS[kind]
    plain = build_encoder(replace(spec, output="linear"), seed=0)
    encoder = build_encoder(spec, seed=0)
    assert not plain.outputs.state_dict()
    for part in ("stem", "blocks", "tail"):
        own, other = getattr(encoder, part).state_dict(), getattr(plain, part).state_dict()
        assert all(torch.equal(own[name], other[name]) for name in own)


def test_dropped_layers_and_stand_ins_go_together(images):
    encoder = build_encoder(SPECS["token"], seed=0).eval()
    stage = keep_layers(Progressive().stages(4, 4)[2], 2, np.random.default_rng(0))
    assert stage.present == (0, 2)
    prefix, active = split_encoder(encoder, stage)
    hidden = encoder.blocks[2](encoder.blocks[0](encoder.stem(images(encoder.spec))))
    assert torch.equal(active(prefix(images(encoder.spec))), encoder.tail(encoder.outputs[0][2](hidden)))


def test_patches_must_not_be_dropped():
    spec = EncoderSpec("vit_tiny_patch16_224", 16, 1, options=VIT | {"patch_drop_rate": 0.5}, output="convolution")
    with pytest.raises(ValueError, match="output 'convolution' needs all patches: patch_drop_rate must be 0"):
        build_encoder(spec, 0)
