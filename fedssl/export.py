"""Writes an encoder so that timm loads it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import timm
from timm.models import save_for_hf
from torch import Tensor

from fedssl.files import replace_folder
from layerwise import StagedEncoder, timm_arguments, use_small_stem


def export_encoder(encoder: StagedEncoder, folder: Path, mean: list[float], std: list[float]) -> None:
    """Writes ``config.json`` and ``model.safetensors``, all or nothing.

    ``timm.create_model("local-dir:FOLDER", pretrained=True, num_classes=0)`` gives back a model with the same
    features. A ViT that stopped growing early is written with the depth it reached. Temporary modules are left out,
    low-rank adapters are merged into the weights that they adapt.

    An encoder with a small stem is one that timm cannot build: ``config.json`` then has the key ``"stem": "small"``,
    timm refuses the weights, and :class:`linear_eval.TimmEncoder` loads them.

    Args:
        encoder: Its first ``encoder.depth`` blocks are written.
        folder: Replaced if it exists.
        mean: Normalisation of the images by channel.
        std: Normalisation of the images by channel.

    Raises:
        ValueError: A ResNet with fewer than its four stages, which timm cannot build.
    """
    spec = encoder.spec
    arguments: dict[str, Any] = timm_arguments(spec) | _depth_argument(encoder)
    model = timm.create_model(spec.name, pretrained=False, **arguments)
    if spec.stem == "small":
        use_small_stem(model, spec.in_channels)
    model.load_state_dict(timm_state(encoder))
    preprocessing = {
        "input_size": [spec.in_channels, spec.image_size, spec.image_size],
        "mean": mean,
        "std": std,
        "crop_pct": 1.0,
    }
    config: dict[str, Any] = {} if spec.stem == "timm" else {"stem": spec.stem}
    config |= {
        "num_classes": 0,
        "num_features": encoder.widths[encoder.depth - 1],
        "pretrained_cfg": {"architecture": spec.name, "tag": "fedssl", "num_classes": 0, **preprocessing},
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".encoder-") as temporary:
        fresh = Path(temporary) / folder.name
        save_for_hf(model, str(fresh), model_config=config, model_args=arguments, safe_serialization=True)
        replace_folder(fresh, folder)


def timm_state(encoder: StagedEncoder) -> dict[str, Tensor]:
    """The weights of the present blocks under timm's own names."""
    is_vit = _is_vit(encoder)
    state = {name.removeprefix("model."): tensor for name, tensor in encoder.stem.state_dict().items()}
    for index, block in enumerate(encoder.blocks[: encoder.depth]):
        prefix = f"blocks.{index}" if is_vit else f"layer{index + 1}"
        state |= {f"{prefix}.{name}": tensor for name, tensor in block.state_dict().items()}
        if encoder.adapters:
            state[f"{prefix}.attn.qkv.weight"] = block.attn.qkv.merged().detach()
    return state | encoder.tail.state_dict()


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
