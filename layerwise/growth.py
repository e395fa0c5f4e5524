"""What happens to the weights when a stage adds blocks."""

from __future__ import annotations

import copy

import torch
from torch import nn

from layerwise.encoder import StagedEncoder
from layerwise.stage import Stage


def grew(previous: Stage, stage: Stage) -> bool:
    """Whether a stage reaches deeper than the one before it; a change of the trained blocks alone is no growth."""
    return stage.depth > previous.depth


def transfer_weights(encoder: StagedEncoder, previous: Stage, stage: Stage) -> list[int]:
    """Starts new blocks from the blocks before them (LW-FedSSL, weight transfer).

    The new blocks copy as many of the last blocks present before, in order; if there were fewer, the remaining ones
    copy the last. Blocks whose shapes differ keep their own initialisation. Where nothing is new, nothing happens.

    Returns:
        The blocks that were overwritten.
    """
    new = [block for block in stage.present if block not in previous.present]
    sources = previous.present[-len(new) :]
    copied = []
    for position, target in enumerate(new):
        source = sources[min(position, len(sources) - 1)]
        if same_shapes(encoder.blocks[source], encoder.blocks[target]):
            encoder.blocks[target].load_state_dict(encoder.blocks[source].state_dict())
            copied.append(target)
    return copied


def renew(module: nn.Module, seed: int) -> None:
    """Initialises every layer of ``module`` that has ``reset_parameters`` anew; the same on every device."""
    fresh = copy.deepcopy(module).cpu()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for layer in fresh.modules():
            reset = getattr(layer, "reset_parameters", None)
            if callable(reset):
                reset()
    module.load_state_dict(fresh.state_dict())


def same_shapes(a: nn.Module, b: nn.Module) -> bool:
    """Whether two modules have the same tensors, up to their values."""
    shapes_a = {name: tensor.shape for name, tensor in a.state_dict().items()}
    shapes_b = {name: tensor.shape for name, tensor in b.state_dict().items()}
    return shapes_a == shapes_b
