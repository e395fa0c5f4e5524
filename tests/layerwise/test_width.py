"""Groups of heads and hidden units, alone and in an encoder."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from timm.layers import Attention, Mlp

from layerwise import EncoderSpec, EndToEnd, FedRolex, HeteroFL, LoRA, build_encoder, paper_cost, split_encoder
from layerwise.width import add_groups, whole_block

WHOLE = HeteroFL(2).stages(4, 5)[0]


@pytest.fixture
def divided(vit):
    """A ViT whose blocks have two groups of one head and half of the hidden units."""
    return build_encoder(replace(vit.spec, width_groups=2), seed=0)


def test_divided_blocks_compute_what_they_did(vit, divided, images):
    plain = build_encoder(vit.spec, seed=0)
    torch.testing.assert_close(divided(images(vit.spec)), plain(images(vit.spec)))
    for i, block in enumerate(plain.blocks):
        whole = whole_block(divided.blocks[i], list(divided.groups[i]))
        assert whole.keys() == block.state_dict().keys()
        assert all(torch.equal(tensor, whole[key]) for key, tensor in block.state_dict().items())


@pytest.mark.parametrize("number", [0, 1])
def test_a_narrow_block_is_one_with_fewer_heads_and_units(number, vit):
    """What its attention and layers add is doubled, but for the biases."""
    block = copy.deepcopy(vit.blocks[0])
    whole, width = vit.blocks[0], block.attn.qkv.in_features
    heads, size = whole.attn.num_heads, whole.attn.head_dim
    mine = range(number * heads // 2, (number + 1) * heads // 2)
    rows = torch.tensor([head * size + row for head in mine for row in range(size)])
    narrow = Attention(width, heads // 2, attn_head_dim=size, dim_out=width, qkv_bias=True)
    joint = torch.cat([rows + part * heads * size for part in range(3)])
    units = torch.arange(whole.mlp.fc1.out_features).chunk(2)[number]
    layers = Mlp(width, len(units))
    with torch.no_grad():
        narrow.qkv.weight.copy_(whole.attn.qkv.weight[joint]), narrow.qkv.bias.copy_(whole.attn.qkv.bias[joint])
        narrow.proj.weight.copy_(2 * whole.attn.proj.weight[:, rows]), narrow.proj.bias.copy_(whole.attn.proj.bias)
        layers.fc1.weight.copy_(whole.mlp.fc1.weight[units]), layers.fc1.bias.copy_(whole.mlp.fc1.bias[units])
        layers.fc2.weight.copy_(2 * whole.mlp.fc2.weight[:, units]), layers.fc2.bias.copy_(whole.mlp.fc2.bias)
    add_groups([block], 2)
    block.attn.active = block.mlp.active = (number,)
    tokens = torch.randn(2, 5, width)
    torch.testing.assert_close(block.attn(tokens), narrow(tokens))
    torch.testing.assert_close(block.mlp(tokens), layers(tokens))


def test_stages_of_both_schemes():
    first, rolling = HeteroFL(3), FedRolex(3)
    (whole,) = first.stages(2, 5)
    assert first.variants(2, 5) == [[whole]]
    assert [each.groups for each in first.choices(whole)] == [(0, 1, 2), (0, 1), (0,)]
    narrow = first.choices(whole)[1]
    names = ["block.0", "width.0.0", "width.0.1", "block.1", "width.1.0", "width.1.1"]
    assert narrow.trained_parts() == ["stem", *names, "output.1", "tail", "reshape.1"]
    rng = np.random.default_rng(0)
    assert first.for_client(narrow, rng, 4) == narrow
    assert [rolling.for_client(narrow, rng, each).groups for each in range(4)] == [(0, 1), (1, 2), (0, 2), (0, 1)]
    assert rolling.for_client(whole, rng, 2) == whole


def test_a_narrow_split_holds_its_groups_only(divided, images):
    whole = sum(p.numel() for p in split_encoder(divided, WHOLE)[1].parameters())
    stage = replace(WHOLE, groups=(1,))
    divided.use_groups(stage.groups)
    _, active = split_encoder(divided, stage)
    lacking = sum(p.numel() for groups in divided.groups for p in groups[0].parameters())
    assert sum(p.numel() for p in active.parameters()) == whole - lacking
    active(images(divided.spec)).sum().backward()
    for groups in divided.groups:
        assert all(p.grad is None for p in groups[0].parameters())
        assert all(p.grad is not None for p in groups[1].parameters())
    divided.use_groups(())
    torch.testing.assert_close(active(images(divided.spec)), divided(images(divided.spec)))


def test_the_paper_counts_whole_blocks(vit, divided):
    ends = [EndToEnd().stages(4, 5), EndToEnd().stages(4, 5), HeteroFL(2).stages(4, 5)]
    plain, *others = (
        paper_cost(encoder, stages, {}, 1, 1) for encoder, stages in zip([vit, divided, divided], ends, strict=True)
    )
    assert [(each.up_bytes, each.macs) for each in others] == [(plain.up_bytes, plain.macs)] * 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width_groups": 3}, "2 heads of a block cannot be divided into 3 groups"),
        ({"width_groups": 2, "name": "resnet18", "options": {}, "position": "learned"}, "width groups need a ViT"),
        ({"width_groups": 2, "options": {"qk_norm": True}}, "without dropout or further norms, not LayerNorm"),
        ({"width_groups": 2, "options": {"proj_drop_rate": 0.1}}, "without dropout or further norms, not Dropout"),
    ],
)
def test_blocks_that_cannot_be_divided_are_refused(settings, message, vit):
    options = dict(vit.spec.options) | settings.get("options", {}) if settings.get("name") is None else {}
    with pytest.raises(ValueError, match=message):
        build_encoder(replace(vit.spec, **settings | {"options": options}), seed=0)


def test_schemes_refuse_what_they_cannot_divide(vit):
    with pytest.raises(ValueError, match="groups must be at least 2, got 1"):
        HeteroFL(1)
    with pytest.raises(ValueError, match=r"encoder\.width_groups 2: leave them out, the scheme HeteroFL sets them"):
        LoRA([1]).adapt(replace(vit.spec, width_groups=2))
    assert HeteroFL(2).adapt(vit.spec) == EncoderSpec(**vars(vit.spec) | {"width_groups": 2})
