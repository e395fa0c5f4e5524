"""What happens to the weights when a stage adds blocks."""

from __future__ import annotations

import torch
from torch import nn

from layerwise.encoder import StagedEncoder
from layerwise.stage import Stage


def transfer_weights(encoder: StagedEncoder, previous: Stage, stage: Stage) -> list[int]:
    """Starts each new block from the block at its place in the previous stage (LW-FedSSL, weight transfer).

    The i-th new block copies the i-th block that the previous stage added or trained last; where the new
    stage is larger, the remaining ones copy the last. Blocks whose shapes differ keep their own
    initialisation.

    Returns:
        The blocks that were overwritten.
    """
    new = [block for block in stage.present if block not in previous.present]
    sources = previous.present[-len(new) :]
    copied = []
    for position, target in enumerate(new):
        source = sources[min(position, len(sources) - 1)]
        if _same_shapes(encoder.blocks[source], encoder.blocks[target]):
            encoder.blocks[target].load_state_dict(encoder.blocks[source].state_dict())
            copied.append(target)
    return copied


def renew(modules: nn.Module, seed: int) -> None:
    """Initialises every layer of ``modules`` anew, reproducibly."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in modules.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()


def _same_shapes(a: nn.Module, b: nn.Module) -> bool:
    shapes_a = {name: tensor.shape for name, tensor in a.state_dict().items()}
    shapes_b = {name: tensor.shape for name, tensor in b.state_dict().items()}
    return shapes_a == shapes_b
