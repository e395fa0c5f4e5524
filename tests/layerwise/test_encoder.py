import math
import random
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

from layerwise import EncoderSpec, build_encoder, timm_arguments

VIT = {"patch_size": 4, "depth": 2, "embed_dim": 32, "num_heads": 2}

LIKE_TIMM = {
    "class_token": EncoderSpec("vit_tiny_patch16_224", 16, 1, "learned", VIT),
    "average": EncoderSpec("vit_tiny_patch16_224", 16, 3, "sincos", VIT | {"global_pool": "avg", "class_token": False}),
    "average_beside_class_token": EncoderSpec("vit_tiny_patch16_224", 16, 3, "learned", VIT | {"global_pool": "avg"}),
    "registers_average": EncoderSpec("vit_little_patch16_reg4_gap_256", 16, 3, "learned", VIT),
    "registers_class_token": EncoderSpec("vit_small_patch14_reg4_dinov2", 16, 3, "learned", VIT),
    "norm_before_blocks": EncoderSpec("vit_base_patch32_clip_224", 16, 3, "learned", VIT),
    "resnet18": EncoderSpec("resnet18", 32, 3),
    "resnet_grey": EncoderSpec("resnet18", 32, 1),
    "deep_stem": EncoderSpec("resnet18d", 32, 3),
}


def original_names(encoder):
    """The encoder's weights under timm's names."""
    weights = {}
    for name, tensor in encoder.state_dict().items():
        part, _, rest = name.partition(".")
        if isinstance(encoder.stem, torch.nn.Sequential):
            block, _, inner = rest.partition(".")
            renamed = f"layer{int(block) + 1}.{inner}" if part == "blocks" else rest
        else:
            renamed = name if part == "blocks" else rest.removeprefix("model.")
        if part != "reshape":
            weights[renamed] = tensor
    return weights


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("spec", LIKE_TIMM.values(), ids=LIKE_TIMM.keys())
def test_features_are_those_of_timms_own_model_with_the_same_weights(spec, images, scramble):
    encoder = scramble(build_encoder(spec, seed=0)).eval()
    model = timm.create_model(spec.name, **timm_arguments(spec))
    model.load_state_dict(original_names(encoder))
    batch = images(spec)
    features = encoder(batch)
    assert features.shape == (2, encoder.feature_dim)
    torch.testing.assert_close(features, model.eval()(batch))


@pytest.mark.parametrize("kind", ["vit_spec", "token_spec", "resnet_spec"])
def test_the_seed_alone_decides_the_weights(kind, request):
    spec = request.getfixturevalue(kind)
    first = build_encoder(spec, seed=3)
    torch.rand(5)
    assert same(first, build_encoder(spec, seed=3))
    assert not same(first, build_encoder(spec, seed=4))


def test_reshape_layers_depend_on_the_seed_too(resnet_spec):
    reshapes = [build_encoder(resnet_spec, seed).reshape[0].weight for seed in (3, 3, 4)]
    assert torch.equal(reshapes[0], reshapes[1])
    assert not torch.equal(reshapes[0], reshapes[2])


@pytest.mark.parametrize("kind", ["vit_spec", "resnet_spec"])
def test_global_random_state_is_untouched(kind, request):
    spec = request.getfixturevalue(kind)
    before = torch.get_rng_state(), torch.initial_seed(), np.random.get_state()[1].copy(), random.getstate()
    build_encoder(spec, seed=54321)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.initial_seed() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])
    assert random.getstate() == before[3]


def test_parts_name_every_tensor_once_in_forward_order(vit, resnet):
    for encoder in (vit, resnet):
        parts = encoder.parts()
        blocks = [f"block.{i}" for i in range(4)]
        temporary = [[f"{kind}.{i}" for i in range(4)] for kind in ("output", "reshape")]
        assert list(parts) == ["stem", *blocks, *temporary[0], "tail", *temporary[1]]
        held = [id(parameter) for part in parts.values() for parameter in part.parameters()]
        assert sorted(held) == sorted(id(parameter) for parameter in encoder.parameters())


def test_widths(vit, resnet):
    assert vit.widths == [32] * 4
    assert vit.feature_dim == 32
    assert resnet.widths == [64, 128, 256, 512]
    assert resnet.feature_dim == 512
    bottleneck = build_encoder(EncoderSpec("resnet26", 32, 3, options={"layers": (1, 1, 1, 1)}), seed=0)
    assert bottleneck.widths == [256, 512, 1024, 2048]


def test_only_narrower_outputs_are_reshaped(vit, resnet):
    assert all(isinstance(layer, torch.nn.Identity) for layer in vit.reshape)
    assert [getattr(layer, "in_features", None) for layer in resnet.reshape] == [64, 128, 256, None]
    assert [getattr(layer, "out_features", None) for layer in resnet.reshape] == [512, 512, 512, None]


NARROW = {"channels": [16, 32, 64, 128]}


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32)])
def test_small_stem(channels, size, images):
    """A 3x3 convolution of stride 1 and no pooling: every pixel reaches the first residual stage."""
    spec = EncoderSpec("resnet18", size, channels, options=NARROW, stem="small")
    encoder = build_encoder(spec, seed=0).eval()
    assert encoder.widths == NARROW["channels"]
    assert encoder.stem.conv1.weight.shape == (64, channels, 3, 3)
    batch = images(spec)
    hidden = encoder.stem(batch)
    assert hidden.shape == (2, 64, size, size)
    by_hand = torch.nn.functional.conv2d(batch, encoder.stem.conv1.weight, padding=1) / math.sqrt(1 + 1e-5)
    torch.testing.assert_close(hidden, by_hand.clamp(min=0))
    assert encoder(batch).shape == (2, 128)


def test_small_stem_is_kaiming_normal_by_the_seed():
    specs = [EncoderSpec("resnet18", 32, 3, stem="small")] * 2
    first, second = (build_encoder(spec, seed).stem.conv1.weight for spec, seed in zip(specs, (0, 1), strict=True))
    assert first.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.05)
    assert not torch.equal(first, second)
    assert torch.equal(first, build_encoder(specs[0], 0).stem.conv1.weight)


def test_small_stem_replaces_a_deep_one(images):
    spec = EncoderSpec("resnet18d", 16, 3, stem="small")
    assert build_encoder(spec, 0).eval().stem(images(spec)).shape == (2, 64, 16, 16)


def test_small_stem_is_for_resnets():
    with pytest.raises(ValueError, match="stem 'small' needs a ResNet, 'vit_tiny_patch16_224' embeds patches"):
        build_encoder(EncoderSpec("vit_tiny_patch16_224", 16, 1, options=VIT, stem="small"), 0)


@pytest.mark.parametrize(("key", "allowed"), [("stem", "'timm' or 'small'"), ("output", "'linear' or 'convolution'")])
def test_unknown_choices(key, allowed):
    with pytest.raises(ValueError, match=f"{key} must be {allowed}, got 'tiny'"):
        EncoderSpec("resnet18", **{key: "tiny"})


@pytest.mark.parametrize("kind", ["vit", "resnet"])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_depth_says_how_many_blocks_run(kind, depth, request, images):
    encoder = request.getfixturevalue(kind).eval()
    batch = images(encoder.spec)
    assert encoder.depth == 4
    hidden = encoder.stem(batch)
    for block in list(encoder.blocks)[:depth]:
        hidden = block(hidden)
    encoder.depth = depth
    features = encoder(batch)
    assert features.shape == (2, encoder.widths[depth - 1])
    assert torch.equal(features, encoder.tail(hidden))


@pytest.mark.parametrize("class_token", [False, True])
def test_sincos_positions(class_token):
    """Sines of row and column, then cosines, at the frequencies 10000 ** (-i / 8)."""
    options = VIT | ({} if class_token else {"global_pool": "avg", "class_token": False})
    position = build_encoder(EncoderSpec("vit_tiny_patch16_224", 16, 1, "sincos", options), 0).stem.model.pos_embed
    frequencies = [10000 ** (-i / 8) for i in range(8)]
    expected = [[0.0] * 32] * class_token
    for row in range(4):
        for column in range(4):
            angles = [place * frequency for place in (row, column) for frequency in frequencies]
            expected.append([math.sin(a) for a in angles] + [math.cos(a) for a in angles])
    torch.testing.assert_close(position.detach()[0], torch.tensor(expected))
    assert position.requires_grad


def test_learned_positions_are_random(token_spec):
    first, second = (build_encoder(token_spec, seed).stem.model.pos_embed for seed in (0, 1))
    assert not torch.equal(first, second)


def test_sincos_needs_a_width_of_four_parts():
    with pytest.raises(ValueError, match=r"multiple of 4, got 30"):
        build_encoder(EncoderSpec("vit_tiny_patch16_224", 16, 1, "sincos", VIT | {"embed_dim": 30}), 0)


def test_sincos_needs_a_position_embedding():
    with pytest.raises(ValueError, match="absolute position embedding"):
        build_encoder(EncoderSpec("vit_tiny_patch16_224", 16, 1, "sincos", VIT | {"pos_embed": "none"}), 0)


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"no model 'resnet1B'.*nearest names: .*resnet18"):
        EncoderSpec("resnet1B")


def test_the_beginning_of_a_name_suggests_it():
    with pytest.raises(ValueError, match="nearest names: vit_tiny_"):
        EncoderSpec("vit_tinny")


def test_name_like_no_other():
    with pytest.raises(ValueError, match=r"'\?\?\?'; nearest names: none"):
        EncoderSpec("???")


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_bad_channels(channels):
    with pytest.raises(ValueError, match=f"in_channels must be 1 or 3, got {channels}"):
        EncoderSpec("resnet18", in_channels=channels)


@pytest.mark.parametrize("size", [0, -32])
def test_image_without_pixels(size):
    with pytest.raises(ValueError, match=f"at least 1 pixel, got {size}"):
        EncoderSpec("resnet18", image_size=size)


@pytest.mark.parametrize("size", [2, 18])
def test_image_must_be_whole_patches(size):
    with pytest.raises(ValueError, match=f"image_size {size} is not a multiple of the patch size 4"):
        build_encoder(EncoderSpec("vit_tiny_patch16_224", size, 1, options=VIT), 0)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
def test_unknown_option(name):
    with pytest.raises(ValueError, match=f"timm refuses to build '{name}'.*no_such_option"):
        build_encoder(EncoderSpec(name, options={"no_such_option": 1}), 0)


def test_options_that_contradict_each_other():
    with pytest.raises(ValueError, match=r"timm refuses to build.*num_heads"):
        build_encoder(EncoderSpec("vit_tiny_patch16_224", options=VIT | {"embed_dim": 33}), 0)


def test_neither_vit_nor_resnet():
    with pytest.raises(ValueError, match="'mobilenetv3_small_050' is a MobileNetV3"):
        build_encoder(EncoderSpec("mobilenetv3_small_050"), 0)


def test_attention_pooling_is_refused():
    with pytest.raises(ValueError, match="global_pool 'map'"):
        build_encoder(EncoderSpec("vit_tiny_patch16_224", 16, 1, options=VIT | {"global_pool": "map"}), 0)


def test_timm_arguments_say_everything_that_was_asked_for(vit_spec, resnet_spec):
    assert timm_arguments(vit_spec) == {
        "in_chans": 1, "num_classes": 0, "img_size": 16, "patch_size": 4, "depth": 4, "embed_dim": 32,
        "num_heads": 2, "global_pool": "avg", "class_token": False,
    }  # fmt: skip
    assert timm_arguments(resnet_spec) == {"in_chans": 3, "num_classes": 0}


def test_channels_last_changes_the_layout_and_no_value(resnet_spec, images):
    spec = replace(resnet_spec, channels_last=True)
    plain, laid_out = build_encoder(resnet_spec, 0).eval(), build_encoder(spec, 0).eval()
    kernels = [p for p in laid_out.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert kernels
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    assert same(plain, laid_out)
    batch = images(spec)
    assert torch.allclose(plain(batch), laid_out(batch), atol=1e-5)
    copy = deepcopy(laid_out)
    copy.load_state_dict(plain.state_dict())
    assert all(own.stride() == new.stride() for own, new in zip(laid_out.parameters(), copy.parameters(), strict=True))
