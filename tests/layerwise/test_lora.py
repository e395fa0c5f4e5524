"""Low-rank adapters, alone and in an encoder."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layerwise import EndToEnd, HeterogeneousLoRA, LoRA, build_encoder, split_encoder
from layerwise.lora import AdaptedQKV, add_adapters


def filled(module):
    """The same module with random numbers in place of its parameters."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


@pytest.fixture
def adapted(vit):
    """A ViT with adapters of ranks 1, 3 and 4 that do something."""
    encoder = build_encoder(replace(vit.spec, ranks=[1, 3, 4]), seed=0)
    filled(encoder.adapters)
    return encoder


@pytest.mark.parametrize("active", [0, 1, 2])
def test_an_update_by_hand(active):
    linear = nn.Linear(4, 12)
    block = nn.Module()
    block.attn = nn.Module()
    block.attn.qkv = linear
    (adapters,) = add_adapters([block], [1, 3])
    filled(adapters)
    layer, tokens = block.attn.qkv, torch.randn(2, 5, 4)
    layer.active = active
    weight = linear.weight.clone()
    for adapter in adapters[:active]:
        weight[:4] += adapter.query.up @ adapter.query.down
        weight[8:] += adapter.value.up @ adapter.value.down
    assert torch.allclose(layer(tokens), F.linear(tokens, weight, linear.bias), atol=1e-5)
    assert not active or torch.allclose(layer.merged(), weight, atol=1e-6)


def test_ranks_are_cut_where_clients_differ(adapted):
    sizes = [adapter.query.down.shape[0] for adapter in adapted.adapters[0]]
    assert sizes == [1, 2, 1]
    assert {name for name in adapted.parts() if name.startswith("adapter.2")} == {f"adapter.2.{i}" for i in range(3)}


def test_new_adapters_change_nothing_and_nothing_else(vit, images):
    fresh = build_encoder(replace(vit.spec, ranks=[2]), seed=0)
    plain = build_encoder(vit.spec, seed=0)
    assert torch.allclose(fresh(images(vit.spec)), plain(images(vit.spec)), atol=1e-6)
    for name, part in plain.parts().items():
        theirs = fresh.parts()[name].state_dict()
        assert part.state_dict().keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in part.state_dict().items())


def test_stages_of_both_schemes():
    same, own = LoRA([2, 4]), HeterogeneousLoRA([2, 4])
    (least,), (most,) = same.variants(3, 5)
    assert (least.adapters, most.adapters) == (1, 2)
    assert same.choices(most) == [most]
    assert own.variants(3, 5) == [[most]]
    assert own.choices(most) == [most, least]
    assert most.frozen_parts() == ["stem", "block.0", "block.1", "block.2"]
    assert least.trained_parts() == ["adapter.0.0", "adapter.1.0", "adapter.2.0", "output.2", "tail", "reshape.2"]
    assert (most.num_trained, EndToEnd().stages(3, 1)[0].num_trained) == (2, 3)


def test_the_split_runs_as_the_encoder_with_the_ranks_in_use(adapted, images):
    stage = LoRA([1, 3, 4]).variants(4, 1)[1][0]
    pixels = images(adapted.spec)
    whole = adapted(pixels)
    adapted.use_adapters(stage.adapters)
    prefix, active = split_encoder(adapted, stage)
    assert torch.equal(active(prefix(pixels)), adapted(pixels))
    assert not torch.allclose(active(prefix(pixels)), whole)
    own = {id(parameter) for parameter in active.parameters()}
    inside = {name for name, part in adapted.parts().items() if {id(p) for p in part.parameters()} & own}
    assert inside == {
        *(f"block.{i}" for i in range(4)),
        *(f"adapter.{i}.{g}" for i in range(4) for g in (0, 1)),
        "tail",
    }


@pytest.mark.parametrize("ranks", [[], [0, 2], [3, 2], [2, 2]])
def test_impossible_ranks(ranks):
    with pytest.raises(ValueError, match="ranks must be ascending numbers of at least 1"):
        LoRA(ranks)


def test_what_does_not_fit_the_encoder(vit, resnet):
    with pytest.raises(ValueError, match="ranks must be at most the width"):
        build_encoder(replace(vit.spec, ranks=[2, 10_000]), seed=0)
    with pytest.raises(ValueError, match="LoRA needs a ViT"):
        build_encoder(replace(resnet.spec, ranks=[2]), seed=0)
    with pytest.raises(ValueError, match="LoRA needs blocks with the joint projection"):
        add_adapters([nn.Linear(2, 2)], [1])
    with pytest.raises(ValueError, match=r"encoder.ranks \[2\]: leave them out"):
        EndToEnd().adapt(replace(vit.spec, ranks=[2]))
    assert LoRA([3]).adapt(vit.spec).ranks == [3]


def test_the_layer_keeps_the_state_of_the_linear_one(adapted):
    layer = adapted.blocks[0].attn.qkv
    assert isinstance(layer, AdaptedQKV)
    assert set(layer.state_dict()) == {"weight", "bias"}
