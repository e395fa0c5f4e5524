"""Weight transfer and re-initialisation when a stage adds blocks."""

from __future__ import annotations

import copy

import torch
from torch import nn

from layerwise.encoder import StagedEncoder
from layerwise.stage import Stage


def grew(previous: Stage, stage: Stage) -> bool:
    """Return True if a stage reaches deeper than the one before; a change of the trained blocks alone is no growth."""
    return stage.depth > previous.depth


def transfer_weights(encoder: StagedEncoder, previous: Stage, stage: Stage) -> list[int]:
    """Initialise new blocks from the blocks before them (LW-FedSSL, weight transfer).

    New blocks copy, in order, as many of the last previous blocks; if those are fewer, the remaining new blocks copy
    the last one. Blocks whose shapes differ keep their own initialisation.

    Returns:
        Indices of the overwritten blocks.
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
    """Re-initialise every layer of ``module`` that has ``reset_parameters``, with equal results on every device."""
    # Generators of different devices draw different numbers from one seed, so a copy on the CPU draws.
    fresh = copy.deepcopy(module).cpu()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for layer in fresh.modules():
            reset = getattr(layer, "reset_parameters", None)
            if callable(reset):
                reset()
    module.load_state_dict(fresh.state_dict())


def same_shapes(a: nn.Module, b: nn.Module) -> bool:
    """Return True if two modules have tensors of the same names and shapes."""
    shapes_a = {name: tensor.shape for name, tensor in a.state_dict().items()}
    shapes_b = {name: tensor.shape for name, tensor in b.state_dict().items()}
    return shapes_a == shapes_b
