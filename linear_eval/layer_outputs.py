"""Outputs of an encoder's layers."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from linear_eval.features import evaluation_mode


def layer_outputs(encoder: nn.Module, layers: Mapping[str, nn.Module], images: Tensor, batch: int = 64) -> list[Tensor]:
    """Run an encoder and return the outputs of some of its modules, averaged over positions.

    Args:
        encoder: Encoder, which runs in evaluation mode.
        layers: Modules of the encoder, each run once a pass; outputs (B, T, D), (B, D, H, W) or (B, D).
        images: Input of the encoder, (N, C, H, W).
        batch: Images a pass.

    Returns:
        One float32 matrix (N, D_i) a layer, in their order.

    Raises:
        ValueError: An output has another shape.
    """
    kept: dict[str, list[Tensor]] = {name: [] for name in layers}
    hooks = [
        layer.register_forward_hook(lambda _, __, output, name=name: kept[name].append(_pooled(output, name)))
        for name, layer in layers.items()
    ]
    try:
        with torch.no_grad(), evaluation_mode(encoder):
            for part in images.split(batch):
                encoder(part)
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.cat(outputs) for outputs in kept.values()]


def _pooled(output: Tensor, name: str) -> Tensor:
    if output.ndim not in (2, 3, 4):
        raise ValueError(f"layer {name} must give (B, D), (B, T, D) or (B, D, H, W), got {tuple(output.shape)}")
    positions = {2: (), 3: (1,), 4: (2, 3)}[output.ndim]
    return (output.mean(dim=positions) if positions else output).float()
