import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from layerwise import LayerWise, Progressive, build_encoder, renew, transfer_weights


def tensors(module):
    return [tensor.clone() for tensor in module.state_dict().values()]


def equal(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("scheme", [LayerWise, Progressive])
@pytest.mark.parametrize(
    ("blocks_per_stage", "stage", "source_of"),
    [(1, 1, {1: 0}), (1, 3, {3: 2}), (2, 1, {2: 0, 3: 1}), ([1, 3], 1, {1: 0, 2: 0, 3: 0}), ([3, 1], 0, {})],
)
def test_new_blocks_start_from_the_ones_added_before(vit, scheme, blocks_per_stage, stage, source_of):
    stages = scheme(blocks_per_stage).stages(4, 12)
    before = copy.deepcopy(vit)
    previous = stages[stage - 1] if stage else stages[0]
    assert transfer_weights(vit, previous, stages[stage]) == sorted(source_of)
    for block in range(4):
        source = before.blocks[source_of.get(block, block)]
        assert equal(tensors(vit.blocks[block]), tensors(source))
        assert not any(equal(tensors(source), tensors(o)) for o in before.blocks if o is not source)
    for name in ("stem", "tail"):
        assert equal(tensors(getattr(vit, name)), tensors(getattr(before, name)))


def test_resnet_stages_of_other_width_keep_their_own_weights(resnet):
    stages = LayerWise().stages(4, 4)
    before = copy.deepcopy(resnet)
    for previous, stage in pairwise(stages):
        assert transfer_weights(resnet, previous, stage) == []
    assert equal(tensors(resnet), tensors(before))


def test_transferred_weights_are_a_copy(vit):
    stages = LayerWise().stages(4, 4)
    transfer_weights(vit, stages[0], stages[1])
    with torch.no_grad():
        vit.blocks[1].mlp.fc1.weight.zero_()
    assert vit.blocks[0].mlp.fc1.weight.any()


def head(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Sequential(nn.Linear(6, 2)))


def test_renewal_depends_on_the_seed_only():
    old, other, third = head(0), head(1), head(2)
    old(torch.randn(8, 4))
    renew(old, seed=7)
    renew(other, seed=7)
    renew(third, seed=8)
    assert equal(tensors(old), tensors(other))
    assert not equal(tensors(old[0]), tensors(third[0]))
    assert not equal(tensors(old[0]), tensors(head(0)[0]))


def test_renewal_reaches_every_layer_and_the_batch_statistics():
    module = head(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(9.0)
    module(torch.randn(8, 4))
    renew(module, seed=7)
    assert torch.equal(module[1].weight, torch.ones(6))
    assert torch.equal(module[1].bias, torch.zeros(6))
    assert torch.equal(module[1].running_mean, torch.zeros(6))
    assert torch.equal(module[1].running_var, torch.ones(6))
    assert module[1].num_batches_tracked == 0
    for linear, bound in ((module[0], 1 / 2), (module[3][0], 6**-0.5)):
        assert 0 < linear.weight.abs().max() <= bound
        assert 0 < linear.bias.abs().max() <= bound


def test_renewal_leaves_the_global_random_state_alone():
    before, seed = torch.get_rng_state(), torch.initial_seed()
    renew(head(0), seed=54321)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.initial_seed() == seed


def test_renewal_touches_nothing_beside(vit_spec):
    encoder = build_encoder(vit_spec, seed=0)
    before = copy.deepcopy(encoder)
    renew(encoder.blocks[2], seed=7)
    assert not equal(tensors(encoder.blocks[2]), tensors(before.blocks[2]))
    parts, old = encoder.parts(), before.parts()
    assert all(equal(tensors(parts[name]), tensors(old[name])) for name in parts if name != "block.2")
