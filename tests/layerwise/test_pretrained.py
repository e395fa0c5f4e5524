"""Pretrained weights from files."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from layerwise import EncoderSpec, build_encoder, timm_arguments
from layerwise.pretrained import load_heads

SPEC = EncoderSpec("vit_tiny_patch16_224", 16, 1, options={"patch_size": 8, "depth": 3, "embed_dim": 8, "num_heads": 2})


def model(spec=SPEC, **arguments):
    torch.manual_seed(5)
    return timm.create_model(spec.name, pretrained=False, **timm_arguments(spec) | arguments)


def loaded(path, spec=SPEC, **options):
    return build_encoder(replace(spec, weights=str(path), options=spec.options | options), seed=1)


@pytest.fixture
def weights(tmp_path):
    save_file(model().state_dict(), tmp_path / "model.safetensors")
    return tmp_path


def test_features_are_those_of_the_file(weights, images):
    expected = model().eval()(images(SPEC))
    for path in (weights, weights / "model.safetensors"):
        assert torch.equal(loaded(path).eval()(images(SPEC)), expected)


def test_a_classifier_is_left_out(tmp_path, images):
    trained = model(num_classes=7)
    torch.save({"state_dict": trained.state_dict(), "epoch": 3}, tmp_path / "best.pth")
    features = trained.eval().forward_head(trained.forward_features(images(SPEC)), pre_logits=True)
    assert torch.equal(loaded(tmp_path / "best.pth").eval()(images(SPEC)), features)


def test_the_first_blocks_of_a_deeper_network(weights):
    shallow, state = loaded(weights, depth=2), model().state_dict()
    assert len(shallow.blocks) == 2
    for index, block in enumerate(shallow.blocks):
        assert all(torch.equal(t, state[f"blocks.{index}.{name}"]) for name, t in block.state_dict().items())
    assert torch.equal(shallow.tail.norm.weight, state["norm.weight"])


def test_a_resnet_with_small_stem(tmp_path):
    spec = EncoderSpec("resnet18", 16, 1, options={"channels": (4, 4, 8, 8)}, stem="small")
    source = build_encoder(spec, seed=3)
    state = dict(source.stem.state_dict())
    state |= {
        f"layer{i + 1}.{name}": t for i, block in enumerate(source.blocks) for name, t in block.state_dict().items()
    }
    torch.save(state, tmp_path / "resnet.pt")
    again = build_encoder(replace(spec, weights=str(tmp_path / "resnet.pt")), seed=4)
    assert all(
        torch.equal(t, again.state_dict()[name]) for name, t in source.state_dict().items() if "reshape" not in name
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 4}, r"lack blocks.3.attn.proj.bias; .* more: they are of another architecture or depth"),
        ({"embed_dim": 16}, r"do not fit the encoder: cls_token \(1, 1, 8\), not \(1, 1, 16\); .* more; set"),
        ({"class_token": False, "global_pool": "avg"}, "have cls_token that the encoder has not|lack fc_norm"),
    ],
)
def test_weights_of_another_network(weights, options, message):
    with pytest.raises(ValueError, match=message):
        loaded(weights, **options)


def test_no_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no pretrained weights at .*absent\.pth"):
        loaded(tmp_path / "absent.pth")
    with pytest.raises(FileNotFoundError, match=r"no pretrained weights at .*model\.safetensors"):
        loaded(tmp_path)


class Anything:
    """What a pickle must not bring in."""


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npz", b"", r"must end in \.safetensors, \.pth, \.pt, \.bin, or be a folder"),
        ("a.safetensors", b"no tensors", "cannot be read"),
        ("a.pth", b"no tensors", "cannot be read"),
    ],
)
def test_files_that_hold_no_weights(tmp_path, name, content, message):
    Path(tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        loaded(tmp_path / name)


def test_only_tensors_are_unpickled(tmp_path):
    torch.save({"state_dict": Anything()}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="cannot be read"):
        loaded(tmp_path / "a.pth")
    torch.save([1, 2], tmp_path / "b.pth")
    with pytest.raises(ValueError, match="hold no tensors by name"):
        loaded(tmp_path / "b.pth")


def test_heads_of_the_same_objective(tmp_path):
    source, target = (nn.ModuleDict({"projector": nn.Linear(4, 2), "predictor": nn.Linear(2, 2)}) for _ in range(2))
    save_file(source.state_dict(), tmp_path / "heads.safetensors")
    load_heads(target, tmp_path)
    assert all(torch.equal(own, source.state_dict()[name]) for name, own in target.state_dict().items())


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({"projector": nn.Linear(4, 2)}, "heads .* have predictor.bias.* that the objective has not"),
        (
            {"projector": nn.Linear(4, 3), "predictor": nn.Linear(2, 2)},
            r"projector.bias \(2,\), not \(3,\).*model.method",
        ),
    ],
    ids=["objective", "size"],
)
def test_heads_of_another_objective_or_size_are_refused(heads, message, tmp_path):
    state = nn.ModuleDict({"projector": nn.Linear(4, 2), "predictor": nn.Linear(2, 2)}).state_dict()
    save_file(state, tmp_path / "heads.safetensors")
    with pytest.raises(ValueError, match=message):
        load_heads(nn.ModuleDict(heads), tmp_path)
