"""Export of encoders to a folder; timm loads those of images."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from fedssl.data.datasets.pixels import Decoding
from fedssl.data.datasets.texts import CHARACTERS
from fedssl.utils.files import replace_folder
from layerwise import CausalTransformerSpec, EncoderSpec, StagedEncoder, timm_arguments, use_small_stem
from layerwise.pretrained import CHECKSUMS, HEADS_IN_FOLDER
from layerwise.width import whole_block

CLAIMS = ("license", "origin_url", "paper_ids", "paper_name", "notes")
"""Entries of timm's ``pretrained_cfg`` that describe timm's own weights and would be false of ours."""


Heads = Mapping[str, nn.Module]


def export_encoder(
    encoder: StagedEncoder,
    folder: Path,
    mean: list[float],
    std: list[float],
    training: dict[str, Any] | None = None,
    heads: Heads | None = None,
    decoding: Decoding | None = None,
) -> None:
    """Write ``config.json``, ``model.safetensors`` and ``heads.safetensors`` of an image encoder, all or nothing.

    ``timm.create_model("local-dir:FOLDER", pretrained=True, num_classes=0)`` restores a model with the same features. A
    ViT that stopped growing early is written with the depth it reached. Temporary modules are left out; low-rank
    adapters are merged into the weights that they adapt.

    timm cannot build an encoder with a small stem. Its ``config.json`` has the key ``"stem": "small"``, so that timm
    refuses the weights and ``linear_eval.TimmEncoder`` loads them.

    Args:
        encoder: Encoder whose first ``encoder.depth`` blocks are written.
        folder: Destination; replaced if it exists.
        mean: Mean of the image normalisation, one a channel.
        std: Standard deviation of the image normalisation, one a channel.
        training: Progress of training, noted in ``config.json``.
        heads: Heads of the objective, from which another run can start; ``None`` leaves them out.
        decoding: Conversion of the images that it was trained on, for whoever gives it further files.

    Raises:
        ValueError: The encoder is a ResNet with fewer than its four stages, which timm cannot build.
    """
    spec = encoder.spec
    assert isinstance(spec, EncoderSpec)
    arguments: dict[str, Any] = timm_arguments(spec) | _depth_argument(encoder)
    model = timm.create_model(spec.name, pretrained=False, **arguments)
    if spec.stem == "small":
        use_small_stem(model, spec.in_channels)
    model.load_state_dict(timm_state(encoder))
    model.pretrained_cfg = {key: value for key, value in model.pretrained_cfg.items() if key not in CLAIMS}
    size = [spec.in_channels, spec.image_size, spec.image_size]
    preprocessing = {"input_size": size, "mean": mean, "std": std, "crop_pct": 1.0}
    config: dict[str, Any] = {} if spec.stem == "timm" else {"stem": spec.stem}
    config |= {"training": training} if training else {}
    config |= {"decoding": asdict(decoding)} if decoding else {}
    config |= {
        "num_classes": 0,
        "num_features": encoder.widths[encoder.depth - 1],
        "pretrained_cfg": {"architecture": spec.name, "tag": "fedssl", "num_classes": 0, **preprocessing},
    }
    with _exported(folder, heads) as fresh:
        save_for_hf(model, str(fresh), model_config=config, model_args=arguments, safe_serialization=True)


def export_text_encoder(
    encoder: StagedEncoder, folder: Path, training: dict[str, Any] | None = None, heads: Heads | None = None
) -> None:
    """Write ``config.json``, ``model.safetensors`` and ``heads.safetensors`` of a text encoder, all or nothing.

    timm has no such model. ``layerwise.CausalTransformerSpec`` with these settings and the folder as ``weights``
    rebuilds the encoder. ``config.json`` also lists the characters, by index from 1; 0 stands for every other one.

    Args:
        encoder: Encoder whose first ``encoder.depth`` blocks and final norm are written. Low-rank adapters are merged
            into the weights that they adapt.
        folder: Destination; replaced if it exists.
        training: Progress of training, noted in ``config.json``.
        heads: Heads of the objective, from which another run can start; ``None`` leaves them out.
    """
    spec = encoder.spec
    assert isinstance(spec, CausalTransformerSpec)
    settings = {name: value for name, value in asdict(spec).items() if name not in ("weights", "ranks")}
    config = {"architecture": spec.name, **settings, "depth": encoder.depth, "characters": CHARACTERS}
    config |= {"training": training} if training else {}
    parts = {"stem": encoder.stem.state_dict(), "tail": encoder.tail.state_dict()}
    parts |= {f"blocks.{i}": _block_state(encoder, i) for i in range(encoder.depth)}
    state = {f"{part}.{name}": tensor.cpu() for part, tensors in parts.items() for name, tensor in tensors.items()}
    with _exported(folder, heads) as fresh:
        (fresh / "config.json").write_text(json.dumps(config))
        save_file(state, fresh / "model.safetensors")


@contextmanager
def _exported(folder: Path, heads: Heads | None) -> Iterator[Path]:
    """Yield a folder to write to; add heads, note the files' SHA-256 in its ``config.json``, and put it into place."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".encoder-") as temporary:
        fresh = Path(temporary) / folder.name
        fresh.mkdir()
        yield fresh
        if heads:
            state = nn.ModuleDict(dict(heads)).state_dict()
            # Cloned, as the format refuses tensors that share memory, and heads may share a weight.
            own = {name: t.cpu().clone(memory_format=torch.contiguous_format) for name, t in state.items()}
            save_file(own, fresh / HEADS_IN_FOLDER)
        config = json.loads((fresh / "config.json").read_text())
        for name, entry in CHECKSUMS.items():  # the format has no checksum of its own
            if (fresh / name).exists():
                with (fresh / name).open("rb") as weights:
                    config[entry] = hashlib.file_digest(weights, "sha256").hexdigest()
        (fresh / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        replace_folder(fresh, folder)


def timm_state(encoder: StagedEncoder) -> dict[str, Tensor]:
    """Return the weights of the present blocks under timm's own names."""
    is_vit = _is_vit(encoder)
    state = {name.removeprefix("model."): tensor for name, tensor in encoder.stem.state_dict().items()}
    for index in range(encoder.depth):
        prefix = f"blocks.{index}" if is_vit else f"layer{index + 1}"
        state |= {f"{prefix}.{name}": tensor for name, tensor in _block_state(encoder, index).items()}
    return state | encoder.tail.state_dict()


def _block_state(encoder: StagedEncoder, index: int) -> dict[str, Tensor]:
    """Return the weights of a block, with its adapters merged into them and its groups put together."""
    block: Any = encoder.blocks[index]
    if encoder.groups:
        return whole_block(block, list(cast(Any, encoder.groups[index])))
    merged = {"attn.qkv.weight": block.attn.qkv.merged().detach()} if encoder.adapters else {}
    return block.state_dict() | merged


def _depth_argument(encoder: StagedEncoder) -> dict[str, int]:
    if _is_vit(encoder):
        return {"depth": encoder.depth}
    if encoder.depth < len(encoder.blocks):
        raise ValueError(
            f"timm cannot build {encoder.spec.name} with {encoder.depth} of {len(encoder.blocks)} stages; "
            "export it after the last stage"
        )
    return {}


def _is_vit(encoder: StagedEncoder) -> bool:
    return hasattr(encoder.stem, "model")
