"""Stages as data (the blocks that exist, are frozen and are trained over a stretch of rounds), and their effects."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from layerwise.encoder import StagedEncoder
from layerwise.lora import AdaptedBlock


@dataclass(frozen=True)
class Stage:
    """Stretch of training rounds with a fixed set of present and trained layers.

    Args:
        index: Position among the run's stages, from 0.
        present: Blocks in the model, in forward order. Depth dropout may leave out some before the last.
        trained: Blocks that are trained, the last ones of ``present``. The blocks before them are frozen: they run
            forward only.
        trains_stem: True if the stem (patch, class and position embedding) is trained too.
        rounds: Communication rounds of the stage.
        adapters: Low-rank adapters of each trained block that are trained in its place (LoRA); 0 trains the block
            itself.
        groups: Groups of heads and hidden units of each block that the client holds; empty for all, and where blocks
            are not divided.
        full_lr: True if clients train at the full learning rate, whose schedule does not count these rounds: warm-up
            of new blocks.
    """

    index: int
    present: tuple[int, ...]
    trained: tuple[int, ...]
    trains_stem: bool
    rounds: int
    adapters: int = 0
    full_lr: bool = False
    groups: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert self.trained, self
        assert self.present[-len(self.trained) :] == self.trained, self
        assert not self.trains_stem or (self.trained == self.present and not self.adapters), self
        assert not self.groups or self.trains_stem, self

    @property
    def frozen(self) -> tuple[int, ...]:
        """Blocks that are present but not trained."""
        return self.present[: len(self.present) - len(self.trained)]

    @property
    def num_trained(self) -> int:
        """Number of trained blocks, or of trained adapters or groups in each."""
        return self.adapters or len(self.groups) or len(self.trained)

    @property
    def depth(self) -> int:
        """Number of leading encoder blocks that the stage's model reaches to."""
        return self.present[-1] + 1

    def frozen_parts(self) -> list[str]:
        """Return the names of the encoder parts that clients need but do not train."""
        stem = [] if self.trains_stem else ["stem"]
        return stem + [f"block.{i}" for i in (self.present if self.adapters else self.frozen)]

    def trained_parts(self) -> list[str]:
        """Return the names of the encoder parts that travel both ways in every round.

        The final norm (``tail``) is among them in every stage (our reading): it normalises a different block's output
        in each stage. The paper's figures do not count it.
        """
        stem = ["stem"] if self.trains_stem else []
        newest = self.present[-1]
        blocks = [name for i in self.trained for name in self.adapter_parts(i) or [f"block.{i}", *self.group_parts(i)]]
        # In the order of the forward pass: of a late result the last parts are the finished ones.
        return [*stem, *blocks, f"output.{newest}", "tail", f"reshape.{newest}"]

    def adapter_parts(self, block: int) -> list[str]:
        """Return the names of the adapters that are trained in place of a trained block."""
        return [f"adapter.{block}.{number}" for number in range(self.adapters)]

    def group_parts(self, block: int) -> list[str]:
        """Return the names of the groups that are trained with a trained block."""
        return [f"width.{block}.{number}" for number in self.groups]


def split_encoder(encoder: StagedEncoder, stage: Stage, dense: bool = False) -> tuple[nn.Sequential, nn.Sequential]:
    """Split the encoder into the frozen prefix and the active part of a stage.

    Both share their modules with ``encoder``. The prefix maps images to the active part's input (it is empty where the
    stem is trained), the active part maps that to features (B, D). With adapters the active part has frozen blocks too.

    Args:
        encoder: Encoder.
        stage: Stage.
        dense: True for the features (B, T, D) of every token of a Vision Transformer, without pooling.
    """
    parts, newest = encoder.parts(), stage.present[-1]

    def held_block(index: int) -> nn.Module:
        block, groups = parts[f"block.{index}"], stage.group_parts(index) or encoder.group_parts(index)
        own = [parts[name] for name in (*stage.adapter_parts(index), *groups)]
        return AdaptedBlock(block, own) if own else block

    frozen = [held_block(i) for i in stage.frozen]
    active = [held_block(i) for i in stage.trained]
    tail = cast(Any, parts["tail"]).dense() if dense else parts["tail"]
    active += [parts[f"output.{newest}"], tail, parts[f"reshape.{newest}"]]
    if stage.trains_stem:
        return nn.Sequential(), nn.Sequential(parts["stem"], *active)
    return nn.Sequential(parts["stem"], *frozen), nn.Sequential(*active)


def keep_layers(stage: Stage, budget: int, rng: np.random.Generator) -> Stage:
    """Draw one client's blocks of a stage: at most ``budget``, chained directly in their own order (depth dropout).

    The first block always stays, because the position embedding is added in front of it, and so do the newest: the
    trained blocks above a frozen prefix, or the last block where every present block is trained. The remaining places
    are drawn uniformly without replacement. Nothing is rescaled, and evaluation uses all blocks.

    The paper (Guo et al., arXiv 2309.05213) prints both a budget and a fixed rate of 50 %; its cost figures follow from
    the budget. One draw for a client and a round, the ascending order of several kept blocks, and the draw among
    trained blocks (the "DD" rows of LW-FedSSL for progressive training) are our reading.

    Args:
        stage: Stage as the server trains it.
        budget: Most blocks present on the client.
        rng: Draws the blocks that are left out; untouched where none is.

    Returns:
        A stage with the same index and rounds.

    Raises:
        ValueError: The blocks that always stay are more than ``budget``.
    """
    if len(stage.present) <= budget:
        return stage
    always = {stage.present[0], *(stage.trained if stage.frozen else stage.present[-1:])}
    if len(always) > budget:
        raise ValueError(f"layer budget {budget} is less than the {len(always)} blocks that every client must hold")
    others = [block for block in stage.present if block not in always]
    # Reached only where something must go, so a budget that is never exceeded leaves the random stream as it was.
    drawn = rng.choice(others, budget - len(always), replace=False).tolist()
    present = tuple(sorted(always.union(drawn)))
    return replace(stage, present=present, trained=tuple(block for block in present if block in stage.trained))


def check_alike(encoder: StagedEncoder) -> None:
    """Refuse encoders whose blocks differ, because then none can be left out.

    Raises:
        ValueError: The blocks have tensors of different shapes.
    """
    for index, block in enumerate(encoder.blocks):
        if _shapes(block) != _shapes(encoder.blocks[0]):
            raise ValueError(
                f"layer_budget needs blocks of one shape, as a ViT has: block {index} of {encoder.spec.name} differs "
                "from block 0"
            )


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
        if _shapes(encoder.blocks[source]) == _shapes(encoder.blocks[target]):
            encoder.blocks[target].load_state_dict(encoder.blocks[source].state_dict())
            copied.append(target)
    return copied


def renew(module: nn.Module, seed: int) -> None:
    """Re-initialise every layer of ``module`` that has ``reset_parameters``, with equal results on every device."""
    # Generators of different devices draw different numbers from one seed, so a copy on the CPU draws.
    fresh = copy.deepcopy(module).cpu()
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would also seed the GPUs; those are not forked.
        torch.default_generator.manual_seed(seed)
        for layer in fresh.modules():
            reset = getattr(layer, "reset_parameters", None)
            if callable(reset):
                reset()
    module.load_state_dict(fresh.state_dict())


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}
