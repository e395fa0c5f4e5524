"""The named parts of a model."""

from collections.abc import Callable
from typing import Any

import torch

from fedssl.protocol.messages import content_id, flatten
from layerwise import EncoderSpec, LayerWise


def test_parts_without_tensors_are_left_out(make_model: Callable[..., Any], resnet_spec: EncoderSpec) -> None:
    blocks = [f"block.{i}" for i in range(3)]
    assert list(make_model("BYOL").parts) == ["stem", *blocks, "tail", "head.projector", "head.predictor"]
    resnet = make_model(spec=resnet_spec)
    reshapes = {name for name in resnet.parts if name.startswith("reshape")}
    assert reshapes == {"reshape.0", "reshape.1"}  # the others have the final width already
    assert "tail" not in resnet.parts


def test_frozen_and_trained_parts_of_a_stage(make_model: Callable[..., Any]) -> None:
    model = make_model()
    first, second = LayerWise().stages(3, 3)[:2]
    assert model.trained_names(first) == ["stem", "block.0", "tail", "head.projector"]
    assert model.frozen_names(first) == []
    assert model.trained_names(second) == ["block.1", "tail", "head.projector"]
    assert model.frozen_names(second) == ["stem", "block.0"]


def test_read_shares_memory_and_write_copies(make_model: Callable[..., Any]) -> None:
    model, other = make_model(seed=0), make_model(seed=1)
    source = other.read(["block.1"])
    model.write(source)
    own = model.read(["block.1"])
    assert content_id(own["block.1"]) == content_id(source["block.1"])
    assert all(own["block.1"][name].data_ptr() != tensor.data_ptr() for name, tensor in source["block.1"].items())
    model.encoder.blocks[1].mlp.fc1.bias.data.fill_(7.0)
    assert torch.all(own["block.1"]["mlp.fc1.bias"] == 7.0)


def test_models_of_one_seed_are_equal(make_model: Callable[..., Any], snapshot: Callable[..., Any]) -> None:
    torch.manual_seed(1)
    first = snapshot(make_model("MoCoV3", seed=3))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = snapshot(make_model("MoCoV3", seed=3))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[key], again[key]) for key in first)
    other = snapshot(make_model("MoCoV3", seed=4))
    assert not torch.equal(first["stem/model.patch_embed.proj.weight"], other["stem/model.patch_embed.proj.weight"])
    name = "head.projector/layers.0.weight"
    assert not torch.equal(first[name], other[name])


def test_attach_gives_the_method_the_active_part_only(make_model: Callable[..., Any]) -> None:
    model = make_model("BYOL")
    model.attach(LayerWise().stages(3, 3)[2])
    active = {id(p) for p in model.method.trained()}
    expected = flatten(model.read(["block.2", "tail", *model.heads]))
    assert len(active) == len([key for key in expected if "running" not in key and "num_batches" not in key])
    copied = sum(p.numel() for p in model.method.target.copy.parameters())
    online = [*model.encoder.blocks[2].parameters(), *model.encoder.tail.parameters()]
    assert copied == sum(p.numel() for p in [*online, *model.method.projector.parameters()])
