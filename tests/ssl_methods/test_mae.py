"""MAE: hidden patches are reconstructed from visible ones, by a stage as by the whole encoder."""

import copy
import dataclasses
import functools
import re

import pytest
import torch
import torch.nn.functional as F
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from torch import nn

from layerwise import EncoderSpec, EndToEnd, LayerWise, Progressive, build_encoder, split_encoder
from ssl_methods import MAE, Foundation, TwoViews
from ssl_methods.mae import normalize, visible_patches

SMALL = {"decoder_dim": 16, "decoder_blocks": 1, "decoder_heads": 2}
SGD = functools.partial(torch.optim.SGD, lr=0.05)


def build(encoder, **settings):
    torch.manual_seed(0)
    return MAE(Foundation(encoder, encoder.feature_dim, TwoViews(flip=0.5), SGD), **SMALL | settings)


def plain_loss(encoder, decoder, stage, inputs):
    """Every token of the whole encoder, with the patches back in their places in the decoder."""
    view, order, targets = inputs
    count, visible = view.shape[:2]
    size, channels = 4, encoder.spec.in_channels
    pixels = torch.zeros(count, order.shape[1], view.shape[2] - 1, dtype=view.dtype)
    pixels.scatter_(1, view[..., :1].long().expand_as(view[..., 1:]), view[..., 1:])
    side = encoder.spec.image_size
    images = F.fold(pixels.transpose(1, 2), side, size, stride=size)
    assert images.shape == (count, channels, side, side)
    tokens = encoder.stem(images)
    prefix = tokens.shape[1] - order.shape[1]
    rows = torch.arange(count)[:, None]
    tokens = torch.cat([tokens[:, :prefix], tokens[:, prefix:][rows, order[:, :visible]]], 1)
    for block in encoder.blocks[: stage.depth]:
        tokens = block(tokens)
    known = decoder.embed(encoder.tail.fc_norm(encoder.tail.norm(tokens)))
    everything = decoder.mask.expand(count, order.shape[1], -1).clone()
    everything[rows, order[:, :visible]] = known[:, prefix:]
    grid = [side // size] * 2
    everything = everything + build_sincos2d_pos_embed(grid, everything.shape[2], interleave_sin_cos=False)
    decoded = decoder.norm(decoder.blocks(torch.cat([known[:, :prefix], everything], 1)))
    found = decoder.pixels(decoded[:, prefix:])[rows, order[:, visible:]]
    return (found - targets).square().mean()


@pytest.mark.parametrize("name", ["vit_token", "vit_avg"])
@pytest.mark.parametrize(("scheme", "index"), [(LayerWise(), 0), (LayerWise(), 2), (Progressive(), 1), (EndToEnd(), 0)])
def test_loss_and_gradients_are_those_of_the_whole_encoder(name, scheme, index, encoder, images):
    stage = scheme.stages(4, 4)[index]
    model = encoder(name).double()
    method = build(model).double()
    whole, decoder = copy.deepcopy(model), copy.deepcopy(method.decoder)
    method.attach(*split_encoder(model, stage, dense=True))
    method.generator.manual_seed(3)
    inputs = method.inputs(images(4), torch.zeros(4))
    inputs = tuple(each.double() if each.is_floating_point() else each for each in inputs)
    loss, expected = method.loss_of(inputs), plain_loss(whole, decoder, stage, inputs)
    loss.backward(), expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-8, atol=1e-11)
    pairs = [(model.parts()[part], whole.parts()[part]) for part in stage.trained_parts()]
    for own, full in [*pairs, (method.decoder, decoder)]:
        for a, b in zip(own.parameters(), full.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-7, atol=1e-10)
    assert all(parameter.grad is None for parameter in method.prefix.parameters())


def test_inputs_are_the_patches_of_a_view_in_a_random_order(encoder, images):
    model = encoder()
    method = build(model, normalized=False)
    method.augment = TwoViews()
    pixels = images(3)
    view, order, targets = method.inputs(pixels, torch.zeros(3))
    assert (view.shape, order.shape, targets.shape) == ((3, 4, 17), (3, 16), (3, 12, 16))
    assert [each.shape for each in method.example_inputs((3, 1, 16, 16))] == [view.shape, order.shape, targets.shape]
    plain = TwoViews().plain(pixels)
    for image in range(3):
        assert sorted(order[image].tolist()) == list(range(16))
        for place, patch in zip(order[image].tolist(), torch.cat([view[image, :, 1:], targets[image]]), strict=True):
            row, column = divmod(place, 4)
            assert torch.equal(patch.view(4, 4), plain[image, 0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4])
    assert torch.equal(view[..., 0].long(), order[:, :4])
    assert not torch.equal(order[0], order[1])


@pytest.mark.parametrize(
    "options",
    [{}, {"reg_tokens": 2}, {"no_embed_class": True}, {"dynamic_img_size": True}, {"pre_norm": True}],
    ids=lambda options: next(iter(options), "plain"),
)
def test_a_stem_embeds_patches_as_it_embeds_images(options, encoder):
    spec = EncoderSpec("vit_tiny_patch16_224", 16, 3, "learned", dict(encoder("vit_token").spec.options) | options)
    stem = build_encoder(spec, 0).stem
    images = torch.randn(2, 3, 16, 16)
    patches = F.unfold(images, 4, stride=4).transpose(1, 2)
    places = torch.tensor([[5, 0, 15], [1, 2, 3]])
    rows = torch.arange(2)[:, None]
    expected = stem(images)
    prefix = expected.shape[1] - 16
    found = stem(torch.cat([places[..., None].float(), patches[rows, places]], 2))
    torch.testing.assert_close(found[:, :prefix], expected[:, :prefix])
    torch.testing.assert_close(found[:, prefix:], expected[:, prefix:][rows, places])


def test_gradient_steps_lower_the_loss(encoder, images):
    model = encoder()
    method = build(model)
    method.optimizer_factory = functools.partial(torch.optim.AdamW, lr=3e-3)
    method.attach(*split_encoder(model, EndToEnd().stages(4, 4)[0], dense=True))
    batch, optimizer = images(16), method.configure_optimizers()

    def loss():
        method.generator.manual_seed(7)
        return method.training_step(batch)

    before = loss().item()
    for _ in range(40):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.9 * before


@pytest.mark.parametrize(("ratio", "visible"), [(0.75, 4), (0.9, 1), (0.06, 15)])
def test_the_share_of_hidden_patches(ratio, visible):
    assert visible_patches(16, ratio) == visible


def test_targets_have_mean_zero_and_variance_one():
    patches = normalize(torch.tensor([[1.0, 3.0], [5.0, 5.0]]))
    torch.testing.assert_close(patches, torch.tensor([[-(0.5**0.5), 0.5**0.5], [0.0, 0.0]]))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"mask_ratio": 0.0}, "mask_ratio must lie between 0 and 1 and leave some of the image's 16 patches, got 0.0"),
        ({"mask_ratio": 0.99}, "mask_ratio must lie between 0 and 1 and leave some"),
        ({"decoder_dim": 18}, "decoder_dim must be a multiple of 4 and of decoder_heads 2, got 18"),
        ({"decoder_blocks": 0}, "decoder_blocks must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message, encoder):
    with pytest.raises(ValueError, match=re.escape(message)):
        build(encoder(), **setting)


def test_encoders_that_need_whole_images_are_refused(encoder):
    with pytest.raises(ValueError, match=r"this encoder's stem takes none: set model\.encoder\.name"):
        build(encoder("resnet18"))
    with pytest.raises(ValueError, match="this encoder's stem takes none"):
        MAE(Foundation(nn.Identity(), 8, TwoViews(), SGD))
    spec = dataclasses.replace(encoder().spec, output="convolution")
    with pytest.raises(ValueError, match=r"encoder\.output 'convolution' needs all of them"):
        build(encoder()).check_encoder(spec)
