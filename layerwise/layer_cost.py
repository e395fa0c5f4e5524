"""Savings of layer-wise training, counted in layers as Guo et al. (arXiv 2309.05213) count them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from layerwise.encoder import StagedEncoder
from layerwise.paper_cost import TRAINING_PASSES, part_costs
from layerwise.stage import Stage


@dataclass(frozen=True)
class LayerShare:
    """Cost of a stage's round, as fractions of a round of end-to-end training.

    Args:
        communication: Share of the bytes, both directions together.
        computation: Share of the multiply-accumulates.
    """

    communication: float
    computation: float


def layer_shares(encoder: StagedEncoder, stages: Sequence[Stage]) -> list[LayerShare]:
    """Return the share of each stage, from the encoder's own blocks; stem, tail and heads are left out.

    Every present block is downloaded and runs forward, every trained block is uploaded too and runs backward at twice
    the cost of forward. With p present and a trained of L equal blocks that is (p + a) / 2L of the communication and (p
    + 2a) / 3L of the computation; the paper prints figures only, these formulas give all of them.

    Args:
        encoder: Full encoder.
        stages: Stages as clients hold them: with a layer budget, after ``Scheme.for_client``.
    """
    parts = part_costs(encoder)
    blocks = [parts[f"block.{i}"] for i in range(len(encoder.blocks))]
    size, macs = sum(block.size for block in blocks), sum(block.macs for block in blocks)
    shares = []
    for stage in stages:
        present, trained = [blocks[i] for i in stage.present], [blocks[i] for i in stage.trained]
        sent = sum(block.size for block in [*present, *trained])
        run = sum(block.macs for block in present) + (TRAINING_PASSES - 1) * sum(block.macs for block in trained)
        shares.append(LayerShare(sent / (2 * size), run / (TRAINING_PASSES * macs)))
    return shares
