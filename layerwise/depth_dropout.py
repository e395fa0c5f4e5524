"""Depth dropout: clients hold a random subset of a stage's blocks (Guo et al., arXiv 2309.05213)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from layerwise.encoder import StagedEncoder
from layerwise.growth import same_shapes
from layerwise.stage import Stage


def keep_layers(stage: Stage, budget: int, rng: np.random.Generator) -> Stage:
    """Draw one client's blocks of a stage: at most ``budget``, chained directly in their own order.

    The first block always stays, because the position embedding is added in front of it, and so do the newest: the
    trained blocks above a frozen prefix, or the last block where every present block is trained. The remaining places
    are drawn uniformly without replacement. Nothing is rescaled, and evaluation uses all blocks.

    The paper prints both a budget and a fixed rate of 50 %; its cost figures follow from the budget. One draw for a
    client and a round, the ascending order of several kept blocks, and the draw among trained blocks (the "DD" rows of
    LW-FedSSL for progressive training) are our reading.

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
    first = encoder.blocks[0]
    for index, block in enumerate(encoder.blocks):
        if not same_shapes(first, block):
            raise ValueError(
                f"layer_budget needs blocks of one shape, as a ViT has: block {index} of {encoder.spec.name} differs "
                "from block 0"
            )
