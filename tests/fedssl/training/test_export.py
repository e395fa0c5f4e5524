"""Encoders as timm loads them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pytorch_lightning import Trainer
from safetensors.torch import load_file
from torch import Tensor, nn

from fedssl.data.images import ImageData
from fedssl.training.export import export_encoder, timm_state
from layerwise import EncoderSpec, StagedEncoder, build_encoder, timm_arguments
from linear_eval import TimmEncoder

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")

RESNET18 = EncoderSpec("resnet18", 16, 3)
SMALL = {"patch_size": 4, "depth": 3, "embed_dim": 16, "num_heads": 2}
VITS = {
    "average": EncoderSpec(
        "vit_tiny_patch16_224", 8, 1, "sincos", SMALL | {"global_pool": "avg", "class_token": False}
    ),
    "class token": EncoderSpec("vit_tiny_patch16_224", 16, 3, "learned", SMALL),
    "registers": EncoderSpec("vit_tiny_patch16_224", 8, 3, options=SMALL | {"reg_tokens": 2, "init_values": 0.1}),
}


def trained(spec: EncoderSpec, depth: int | None = None) -> StagedEncoder:
    """An encoder with weights and running statistics that no initialisation gives."""
    encoder = build_encoder(spec, seed=3)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for tensor in encoder.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.05 * torch.rand(tensor.shape, generator=generator))
    encoder.depth = depth or len(encoder.blocks)
    return encoder.eval()


def features(model: torch.nn.Module, spec: EncoderSpec) -> Tensor:
    shape = (4, spec.in_channels, spec.image_size, spec.image_size)
    with torch.no_grad():
        return model.eval()(torch.rand(shape, generator=torch.Generator().manual_seed(1)))


def assert_timm_agrees(encoder: StagedEncoder, folder: Path) -> None:
    spec, expected = encoder.spec, features(encoder, encoder.spec)
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
    assert torch.allclose(features(loaded, spec), expected, atol=1e-6)
    depth = {"depth": encoder.depth} if "vit" in spec.name else {}
    weights = folder / "model.safetensors"
    bare = timm.create_model(spec.name, checkpoint_path=str(weights), **timm_arguments(spec) | depth)
    assert torch.allclose(features(bare, spec), expected, atol=1e-6)
    fresh = timm.create_model(spec.name, **timm_arguments(spec) | depth)
    assert not torch.allclose(features(fresh, spec), expected, atol=1e-3)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("kind", VITS)
def test_vit_of_any_depth(kind: str, depth: int, tmp_path: Path) -> None:
    encoder = trained(VITS[kind], depth)
    export_encoder(encoder, tmp_path / "encoder", [0.5], [0.5])
    assert_timm_agrees(encoder, tmp_path / "encoder")
    tensors = load_file(tmp_path / "encoder" / "model.safetensors")
    assert {key.split(".")[1] for key in tensors if key.startswith("blocks")} == {str(i) for i in range(depth)}


def test_resnet18(tmp_path: Path) -> None:
    encoder = trained(RESNET18)
    export_encoder(encoder, tmp_path / "encoder", [0.5] * 3, [0.5] * 3)
    assert_timm_agrees(encoder, tmp_path / "encoder")


@pytest.mark.parametrize("kind", ["resnet18", "vit_tiny_patch16_224"])
def test_stand_ins_for_missing_blocks_are_not_written(kind: str, tmp_path: Path) -> None:
    spec = EncoderSpec(kind, 16, 3, options={} if kind == "resnet18" else SMALL, output="convolution")
    encoder = trained(spec)
    export_encoder(encoder, tmp_path / "encoder", [0.5] * 3, [0.5] * 3)
    assert_timm_agrees(encoder, tmp_path / "encoder")


def small_stem(channels: int = 3) -> StagedEncoder:
    options = {"channels": [16, 32, 64, 128]}
    return trained(EncoderSpec("resnet18", 16, channels, options=options, output="convolution", stem="small"))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_small_stem_is_read_back_by_the_evaluation(channels: int, tmp_path: Path) -> None:
    encoder = small_stem(channels)
    export_encoder(encoder, tmp_path / "encoder", [0.2] * channels, [0.3] * channels)
    module = TimmEncoder(str(tmp_path / "encoder"))
    assert torch.equal(features(module.encoder, encoder.spec), features(encoder, encoder.spec))
    assert (module.image_size, module.in_channels) == (16, channels)
    assert module.std == [0.3] * channels
    assert json.loads((tmp_path / "encoder" / "config.json").read_text())["stem"] == "small"


def test_timm_alone_refuses_a_small_stem(tmp_path: Path) -> None:
    export_encoder(small_stem(), tmp_path / "encoder", [0.5] * 3, [0.5] * 3)
    with pytest.raises(RuntimeError, match="size mismatch for conv1"):
        timm.create_model(f"local-dir:{tmp_path / 'encoder'}", pretrained=True, num_classes=0)


def test_an_unknown_stem_is_refused(tmp_path: Path) -> None:
    export_encoder(small_stem(), tmp_path / "encoder", [0.5] * 3, [0.5] * 3)
    path = tmp_path / "encoder" / "config.json"
    path.write_text(path.read_text().replace('"small"', '"tiny"'))
    with pytest.raises(ValueError, match=r"config.json has the stem 'tiny'; allowed: 'timm', 'small'"):
        TimmEncoder(str(tmp_path / "encoder"))


@pytest.mark.parametrize("depth", [1, 3])
def test_a_growing_resnet_is_refused_and_nothing_written(depth: int, resnet_spec: EncoderSpec, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"timm cannot build resnet18 with {depth} of 4 stages; export it after"):
        export_encoder(trained(resnet_spec, depth), tmp_path / "encoder", [0.5], [0.5])
    assert not list(tmp_path.iterdir())


def test_weights_are_the_encoders(tmp_path: Path) -> None:
    encoder = trained(VITS["average"])
    export_encoder(encoder, tmp_path / "encoder", [0.5], [0.5])
    tensors = load_file(tmp_path / "encoder" / "model.safetensors")
    own = timm_state(encoder)
    assert tensors.keys() == own.keys()
    assert all(torch.equal(tensors[key], own[key]) for key in own)


def test_config_says_how_to_use_it(tmp_path: Path) -> None:
    export_encoder(trained(VITS["class token"], 2), tmp_path / "encoder", [0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    config = json.loads((tmp_path / "encoder" / "config.json").read_text())
    assert config["architecture"] == "vit_tiny_patch16_224"
    assert config["num_features"] == 16
    assert config["model_args"]["depth"] == 2
    assert config["pretrained_cfg"]["mean"] == [0.1, 0.2, 0.3]
    assert config["pretrained_cfg"]["std"] == [0.4, 0.5, 0.6]
    assert config["pretrained_cfg"]["input_size"] == [3, 16, 16]


@pytest.mark.parametrize("spec", [VITS["average"], RESNET18])
def test_no_licence_and_no_origin_of_timms_own_weights_is_claimed(spec: EncoderSpec, tmp_path: Path) -> None:
    export_encoder(trained(spec), tmp_path / "encoder", [0.5] * spec.in_channels, [0.5] * spec.in_channels)
    text = (tmp_path / "encoder" / "config.json").read_text()
    assert not [word for word in ("license", "origin_url", "paper_ids", "apache", "arXiv") if word in text]


def test_an_older_export_is_replaced_and_nothing_else_left(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "encoder"
    for depth in (1, 3):
        encoder = trained(VITS["average"], depth)
        export_encoder(encoder, folder, [0.5], [0.5])
    assert_timm_agrees(encoder, folder)
    assert [path.name for path in folder.parent.iterdir()] == ["encoder"]


def test_a_failed_export_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = trained(VITS["average"])
    export_encoder(encoder, tmp_path / "encoder", [0.5], [0.5])

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedssl.training.export.save_for_hf", full)
    with pytest.raises(OSError, match="No space left"):
        export_encoder(trained(VITS["average"], 1), tmp_path / "encoder", [0.5], [0.5])
    assert [path.name for path in tmp_path.iterdir()] == ["encoder"]
    assert_timm_agrees(encoder, tmp_path / "encoder")


def test_the_export_can_be_evaluated(tmp_path: Path) -> None:
    encoder = trained(VITS["average"])
    export_encoder(encoder, tmp_path / "encoder", [0.5], [0.25])
    module = TimmEncoder(str(tmp_path / "encoder"))
    data = ImageData(seed=0)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    metrics = trainer.validate(module, datamodule=data, verbose=False)[0]
    assert 20 < metrics["eval/knn_top1"] <= 100
    images = next(iter(data.val_dataloader()[1]))[0]
    with torch.no_grad():
        expected = encoder((images / 255 - 0.5) / 0.25)
        assert torch.allclose(module.encoder(module.normalize(images)), expected, atol=1e-5)


def test_an_encoder_may_move_as_a_folder(tmp_path: Path) -> None:
    encoder = trained(VITS["average"])
    export_encoder(encoder, tmp_path / "encoder", [0.5], [0.5])
    (tmp_path / "encoder").rename(tmp_path / "moved")
    assert_timm_agrees(encoder, tmp_path / "moved")


def test_the_folder_is_as_readable_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    export_encoder(trained(VITS["average"]), tmp_path / "encoder", [0.5], [0.5])
    assert (tmp_path / "encoder").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("offset", [-1, -1000])
def test_exported_weights_with_a_changed_bit_are_refused(offset: int, tmp_path: Path) -> None:
    """A ``.safetensors`` file has no checksum; the folder's ``config.json`` does."""
    spec, folder = VITS["average"], tmp_path / "encoder"
    export_encoder(trained(spec), folder, [0.5], [0.5])
    weights = folder / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[offset] ^= 64
    weights.write_bytes(changed)
    with pytest.raises(ValueError, match=r"is damaged or was exchanged: config\.json has another sha256"):
        TimmEncoder(str(folder))
    for given in (folder, weights):
        with pytest.raises(ValueError, match=r"are damaged or were exchanged: .*config\.json has another sha256"):
            build_encoder(replace(spec, weights=str(given)), seed=0)


def test_heads_that_share_a_weight_are_written_in_full(tmp_path: Path) -> None:
    encoder, shared = trained(VITS["average"]), nn.Linear(3, 2)
    export_encoder(encoder, tmp_path / "encoder", [0.5], [0.2], heads={"first": shared, "second": shared})
    written = load_file(tmp_path / "encoder" / "heads.safetensors")
    assert written.keys() == {"first.weight", "first.bias", "second.weight", "second.bias"}
    assert torch.equal(written["first.weight"], written["second.weight"])
