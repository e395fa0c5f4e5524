"""Micro-batches give what whole batches give, from less memory."""

import copy

import pytest
import torch
from torch import nn

from layerwise import EncoderSpec, MicroBatches, StepMeter, build_encoder, check_micro_batch

DROPOUT = {"patch_size": 4, "depth": 2, "embed_dim": 32, "num_heads": 2, "proj_drop_rate": 0.5}


def gradients(module, head, batch, seed=0):
    torch.manual_seed(seed)
    loss = head(module(batch)).square().mean() + module(batch.flip(0)).sum()
    loss.backward()
    found = [p.grad.clone() for m in (module, head) for p in m.parameters() if p.grad is not None]
    module.zero_grad()
    head.zero_grad()
    return [loss.detach(), *found]


@pytest.mark.parametrize("size", [1, 3, 4, 10, 50])
def test_output_and_gradients_are_those_of_the_whole_batch(size, vit, vit_spec, images):
    """Behind it a head with batch norm, which sees the whole batch either way."""
    encoder, batch = vit.double(), images(vit_spec, 10).double()
    head = nn.Sequential(nn.Linear(32, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)).double()
    expected = gradients(encoder, copy.deepcopy(head), batch)
    found = gradients(MicroBatches(encoder, size), copy.deepcopy(head), batch)
    assert len(found) == len(expected) > 10
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_nothing_is_kept_without_a_graph(vit, vit_spec, images):
    batch = images(vit_spec, 5)
    with torch.no_grad(), StepMeter(vit.parameters()) as meter:
        found = MicroBatches(vit, 2)(batch)
    torch.testing.assert_close(found, vit(batch))
    assert meter.cost().activation_bytes == 0
    assert not found.requires_grad


def test_dropout_draws_the_same_in_both_passes(images):
    """In double precision the loss is linear along its gradient, if both passes have the same masks."""
    encoder = build_encoder(EncoderSpec("vit_tiny_patch16_224", 16, 1, options=DROPOUT), 0).double()
    batch, weight = images(encoder.spec, 6).double(), encoder.blocks[1].mlp.fc2.bias
    wrapped = MicroBatches(encoder, 2)

    def loss():
        torch.manual_seed(1)
        return wrapped(batch).square().mean()

    loss().backward()
    step = 1e-6 * weight.grad / weight.grad.norm()
    with torch.no_grad():
        weight.add_(step)
        above = loss()
        weight.sub_(2 * step)
        below = loss()
    torch.testing.assert_close(above - below, 2e-6 * weight.grad.norm(), rtol=1e-5, atol=0)


def test_activations_are_those_of_one_micro_batch_and_operations_those_of_another_forward_pass():
    """Two linear layers keep B (D + H) floats; in micro-batches the inputs, which are there anyway, and M H more."""
    B, M, D, H = 12, 3, 5, 7
    chain, batch = nn.Sequential(nn.Linear(D, H), nn.GELU(), nn.Linear(H, D)), torch.randn(B, D)
    costs = []
    for module in (chain, MicroBatches(chain, M)):
        with StepMeter(chain.parameters()) as meter:
            module(batch).sum().backward()
        costs.append(meter.cost())
    whole, micro = costs
    assert whole.activation_bytes == 4 * B * (D + H + H)
    anchor = 4
    assert micro.activation_bytes == 4 * (B * D + M * (H + H)) + anchor
    forward, backward = B * 2 * D * H, B * 3 * D * H
    assert (whole.macs, micro.macs) == (forward + backward, 2 * forward + backward)


def test_an_encoder_with_batch_norms_is_refused(resnet, vit):
    with pytest.raises(ValueError, match=r"micro_batch 4 needs an encoder .* batch norms \(stem"):
        check_micro_batch(resnet, 4)
    with pytest.raises(ValueError, match="micro_batch must be at least 1 image, got 0"):
        check_micro_batch(vit, 0)
    check_micro_batch(vit, 1)
