"""The resource figures of LW-FedSSL, table 2, out of the modules; every formula also by hand for a tiny model."""

from dataclasses import replace

import pytest
import torch
from lightly.models.modules import BYOLPredictionHead, MoCoProjectionHead, SimCLRProjectionHead
from torch import nn

from layerwise import EncoderSpec, EndToEnd, LayerWise, Progressive, build_encoder
from layerwise.paper_cost import PaperCost, PartCost, head_costs, paper_cost, part_costs

FLOAT, COUNTER = 4, 8  # bytes
SCHEMES = {"end-to-end": EndToEnd(), "layer-wise": LayerWise(), "progressive": Progressive()}
ROUNDS, EPOCHS = 180, 3

# (method, scheme, GFLOPs, GB) as printed.
TABLE_2 = [
    ("moco", "end-to-end", 586, 8.40),
    ("moco", "layer-wise", 139, 1.66),
    ("moco", "progressive", 318, 5.04),
    ("simclr", "end-to-end", 1169, 8.03),
    ("simclr", "layer-wise", 278, 1.29),
    ("simclr", "progressive", 635, 4.68),
    ("byol", "end-to-end", 586, 8.40),
    ("byol", "layer-wise", 139, 1.66),
    ("byol", "progressive", 318, 5.04),
]


def paper_heads(method, width=192):
    """The heads of section 4 (hidden width 512, output 256), and the views the paper counts."""
    if method == "moco":
        predictor = MoCoProjectionHead(256, 512, 256, 2, True)
        return {"projector": MoCoProjectionHead(width, 512, 256, 3, True), "predictor": predictor}, 1
    projector = SimCLRProjectionHead(width, 512, 256, 3)
    if method == "simclr":
        return {"projector": projector}, 2
    return {"projector": projector, "predictor": BYOLPredictionHead(256, 512, 256)}, 1


def tiny_head(width=32):
    return {"head": nn.Sequential(nn.Linear(width, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU())}


def round_costs(encoder, stages, *arguments, **options):
    """The cost of a single round of each stage."""
    return [paper_cost(encoder, [replace(stage, rounds=1)], *arguments, **options) for stage in stages]


def vit_block_macs(T, D):
    """Linear layers, the two attention products, two layer norms."""
    return 12 * T * D * D + 2 * T * T * D + 2 * 5 * T * D


@pytest.fixture(scope="module")
def vit_tiny():
    """The paper's encoder."""
    return build_encoder(EncoderSpec(options={"patch_size": 4, "qkv_bias": False}), seed=0)


@pytest.fixture
def token_vit(token_spec):
    return build_encoder(token_spec, seed=0)


@pytest.mark.parametrize(("method", "scheme", "gflops", "gigabytes"), TABLE_2)
def test_table_2(vit_tiny, method, scheme, gflops, gigabytes):
    heads, views = paper_heads(method)
    cost = paper_cost(vit_tiny, SCHEMES[scheme].stages(12, ROUNDS), heads, EPOCHS, views)
    assert cost.gflops == pytest.approx(gflops, rel=0.005)
    assert f"{cost.traffic_gb:.2f}" == f"{gigabytes:.2f}"


@pytest.mark.parametrize(("method", "scheme", "gflops", "gigabytes"), [row for row in TABLE_2 if row[0] != "simclr"])
def test_table_2_as_printed(vit_tiny, method, scheme, gflops, gigabytes):
    """All but SimCLR's end-to-end (1170) and progressive (636) operations, which are 0.1 % above the printed ones."""
    heads, views = paper_heads(method)
    assert round(paper_cost(vit_tiny, SCHEMES[scheme].stages(12, ROUNDS), heads, EPOCHS, views).gflops) == gflops


@pytest.mark.parametrize("method", ["moco", "byol"])
def test_worst_case_traffic_of_layer_wise_training(vit_tiny, method):
    heads, views = paper_heads(method)
    stages = LayerWise().stages(12, ROUNDS)
    worst = paper_cost(vit_tiny, stages, heads, EPOCHS, views, downloads_all=True)
    usual = paper_cost(vit_tiny, stages, heads, EPOCHS, views)
    assert f"{worst.traffic_gb:.2f}" == "3.35"
    assert (worst.up_bytes, worst.macs) == (usual.up_bytes, usual.macs)
    progressive = paper_cost(vit_tiny, Progressive().stages(12, ROUNDS), heads, EPOCHS, views)
    assert worst.down_bytes == progressive.down_bytes


@pytest.mark.parametrize("scheme", ["end-to-end", "progressive"])
def test_worst_case_changes_nothing_where_nothing_is_frozen(token_vit, scheme):
    stages = SCHEMES[scheme].stages(4, 8)
    usual, worst = (round_costs(token_vit, stages, tiny_head(), 1, 1, flag) for flag in (False, True))
    assert usual == worst


def test_parts_of_a_vit_by_hand(token_vit):
    T, D, pixels = 16, 32, 4 * 4
    parts = part_costs(token_vit)
    block = PartCost(vit_block_macs(T, D), FLOAT * (12 * D * D + 9 * D + 4 * D))  # products, biases, norms
    assert [parts[f"block.{i}"] for i in range(4)] == [block] * 4
    assert parts["stem"] == PartCost(T * pixels * D, FLOAT * (pixels * D + D + (T + 1) * D + D))
    assert parts["tail"] == PartCost(5 * T * D, FLOAT * 2 * D)
    assert parts["reshape.3"] == PartCost(0, 0)


def test_heads_are_chained():
    heads = {**tiny_head(32), "second": nn.Linear(8, 5)}
    assert head_costs(heads, 32) == {
        "head": PartCost(32 * 8 + 2 * 8, FLOAT * (32 * 8 + 4 * 8) + COUNTER),
        "second": PartCost(8 * 5, FLOAT * (8 * 5 + 5)),
    }


def test_layer_wise_rounds_by_hand(token_vit):
    """Stem and norm travel in the first stage only; the norm and the head are trained in every stage."""
    parts = part_costs(token_vit)
    stem, block, tail = parts["stem"], parts["block.0"], parts["tail"]
    head = head_costs(tiny_head(), 32)["head"]
    first, _, third, _ = round_costs(token_vit, LayerWise().stages(4, 8), tiny_head(), local_epochs=3, views=2)
    everything = stem.size + block.size + tail.size + head.size
    assert first == PaperCost(6 * 3 * (stem.macs + block.macs + tail.macs + head.macs), everything, everything)
    macs = 6 * (stem.macs + 2 * block.macs + 3 * (block.macs + tail.macs + head.macs))
    assert third == PaperCost(macs, block.size + head.size, block.size + head.size)
    worst = round_costs(token_vit, LayerWise().stages(4, 8), tiny_head(), 3, 2, downloads_all=True)[2]
    assert worst == PaperCost(macs, everything + 2 * block.size, block.size + head.size)


def test_progressive_and_end_to_end_rounds_by_hand(token_vit):
    parts = part_costs(token_vit)
    rest = sum((parts["stem"], parts["tail"], head_costs(tiny_head(), 32)["head"]), PartCost())
    block = parts["block.0"]

    def trained(blocks):
        size = rest.size + blocks * block.size
        return PaperCost(3 * (rest.macs + blocks * block.macs), size, size)

    progressive = round_costs(token_vit, Progressive().stages(4, 4), tiny_head(), 1, 1)
    assert progressive == [trained(1), trained(2), trained(3), trained(4)]
    assert round_costs(token_vit, EndToEnd().stages(4, 4), tiny_head(), 1, 1) == [trained(4)]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_linear_in_rounds_epochs_and_views(token_vit, scheme):
    def cost(rounds, local_epochs, views):
        return paper_cost(token_vit, SCHEMES[scheme].stages(4, rounds), tiny_head(), local_epochs, views)

    one = cost(4, 1, 1)
    assert cost(20, 1, 1) == one * 5
    assert cost(4, 3, 2) == PaperCost(6 * one.macs, one.down_bytes, one.up_bytes)


@pytest.mark.parametrize("together", [1, 2, 3, 4, 6])
def test_blocks_per_stage(token_spec, together):
    """On average (12 - k) / 2 frozen and k trained blocks a round for layer-wise, (12 + k) / 2 for progressive."""
    options = token_spec.options | {"depth": 12}
    encoder = build_encoder(EncoderSpec(token_spec.name, 16, 1, "learned", options), seed=0)
    rounds, number = 24, 12 // together
    parts = part_costs(encoder)
    stem, block, tail = parts["stem"], parts["block.0"], parts["tail"]

    grown = paper_cost(encoder, Progressive(together).stages(12, rounds), {}, 1, 1)
    assert grown.macs == rounds * 3 * (stem.macs + tail.macs) + rounds * 3 * block.macs * (12 + together) // 2
    assert grown.down_bytes == rounds * (stem.size + tail.size) + rounds * block.size * (12 + together) // 2

    layered = paper_cost(encoder, LayerWise(together).stages(12, rounds), {}, 1, 1)
    stem_macs = stem.macs * (rounds + 2 * rounds // number)
    block_macs = rounds * block.macs * (12 - together) // 2 + rounds * 3 * together * block.macs
    assert layered.macs == stem_macs + block_macs + rounds * 3 * tail.macs
    sent = rounds * together * block.size + rounds // number * (stem.size + tail.size)
    assert (layered.down_bytes, layered.up_bytes) == (sent, sent)


@pytest.mark.parametrize(("image", "patch", "tokens"), [(32, 4, 64), (64, 4, 256), (64, 8, 64), (32, 8, 16)])
def test_tokens_follow_image_and_patch_size(token_spec, image, patch, tokens):
    D = 32
    options = token_spec.options | {"patch_size": patch}
    parts = part_costs(build_encoder(EncoderSpec(token_spec.name, image, 3, "learned", options), seed=0))
    assert parts["block.2"].macs == vit_block_macs(tokens, D)
    assert parts["stem"].macs == tokens * 3 * patch**2 * D
    assert parts["tail"].macs == 5 * tokens * D


@pytest.mark.parametrize("options", [{"reg_tokens": 4}, {"class_token": False, "global_pool": "avg"}])
def test_tokens_before_the_patches_are_not_counted(token_spec, token_vit, options):
    other = build_encoder(EncoderSpec(token_spec.name, 16, 1, "learned", token_spec.options | options), seed=0)
    assert part_costs(other)["block.0"] == part_costs(token_vit)["block.0"]


@pytest.mark.parametrize("fused", [True, False])
def test_either_attention_kernel_counts_the_same(token_vit, fused):
    token_vit.blocks[0].attn.fused_attn = fused
    assert part_costs(token_vit)["block.0"].macs == vit_block_macs(16, 32)


def test_parts_of_resnet18_by_hand(resnet):
    """32 x 32 pixels become 16 x 16 in the first convolution, 8 x 8 by pooling, and 4 x 4 in the second stage."""
    parts = part_costs(resnet)
    assert parts["stem"].macs == 16 * 16 * 64 * (7 * 7 * 3 + 2)
    assert parts["block.0"].macs == 4 * 8 * 8 * 64 * (3 * 3 * 64 + 2)
    convolutions = 3 * 3 * 64 + 3 * (3 * 3 * 128) + 1 * 64  # the last is the shortcut's
    assert parts["block.1"].macs == 4 * 4 * 128 * (convolutions + 5 * 2)
    weights = 128 * (convolutions + 5 * 4)  # a batch norm has scale, shift, mean and variance
    assert parts["block.1"].size == FLOAT * weights + 5 * COUNTER
    assert parts["tail"] == PartCost(0, 0)
    assert parts["reshape.1"] == PartCost(128 * 512, FLOAT * (128 * 512 + 512))


def test_resnet18_in_four_stages(resnet):
    """The temporary layer of a stage is trained and travels with it; the last stage has none."""
    parts = part_costs(resnet)
    heads, views = paper_heads("moco", width=512)
    head = sum(head_costs(heads, 512).values(), PartCost())
    _, second, _, fourth = round_costs(resnet, LayerWise().stages(4, 120), heads, 1, views)
    trained = parts["block.1"] + parts["reshape.1"] + head
    assert second.macs == parts["stem"].macs + parts["block.0"].macs + 3 * trained.macs
    assert second.down_bytes == second.up_bytes == trained.size
    assert fourth.up_bytes == (parts["block.3"] + head).size
    costs = {name: paper_cost(resnet, scheme.stages(4, 120), heads, 3, 1) for name, scheme in SCHEMES.items()}
    assert costs["layer-wise"].macs < costs["progressive"].macs < costs["end-to-end"].macs
    assert costs["layer-wise"].traffic_gb < costs["progressive"].traffic_gb < costs["end-to-end"].traffic_gb


def test_units():
    cost = PaperCost(macs=2_500_000_000, down_bytes=3 * 1000 * 1024**2, up_bytes=1000 * 1024**2)
    assert cost.gflops == 2.5
    assert cost.traffic_gb == 4.0


@pytest.mark.parametrize("kind", ["token_vit", "resnet"])
def test_the_model_stays_as_it_is(kind, request):
    encoder = request.getfixturevalue(kind)
    heads, _ = paper_heads("moco", encoder.feature_dim)
    modules = nn.ModuleList([encoder, *heads.values()]).train()
    before = {name: tensor.clone() for name, tensor in modules.state_dict().items()}
    paper_cost(encoder, Progressive().stages(4, 4), heads, 1, 1)
    after = modules.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(module.training and not module._forward_hooks for module in modules.modules())


def test_a_model_without_contents_has_the_same_costs(token_spec, token_vit):
    expected = part_costs(token_vit)
    assert part_costs(token_vit.to("meta")) == expected


@pytest.mark.parametrize(("factors", "message"), [((0, 1), "local_epochs.*got 0"), ((1, -1), "views.*got -1")])
def test_wrong_factors(token_vit, factors, message):
    with pytest.raises(ValueError, match=message):
        paper_cost(token_vit, LayerWise().stages(4, 4), tiny_head(), *factors)
