"""Cost of a client over a run, counted as papers count: LW-FedSSL (arXiv 2401.11647, version 4), and FLL in layers.

``layerwise.meter`` and a run's messages measure the operations and bytes of this code. This module predicts the figures
that the paper would print for a model. It reads them off the modules; nothing is executed.

Operations are multiply-accumulates (printed as "FLOPs") of one sample in the online branch: products of linear layers,
convolutions and attention, layer and group norm at 5 an element, batch norm at 2. Backward costs twice the forward
pass, frozen parts (the stem of later stages among them) run forward only, heads are trained in every round. A ViT's
class token is left out: the tokens that the stem puts before the patch tokens are cut off in front of the first block.
Activations, pooling, biases and residual sums are free.

Traffic is the state dict of everything trained, batch statistics and their counters included. The final norm (``tail``)
and the temporary layers of narrow stages (``reshape``) count in neither; in this it differs from
``Stage.trained_parts``, by which both are trained and travel in every stage. No text of the paper says so: these are
the rules under which the figures of tables 2 to 6, 10 and 11 come out (docs/cost.md).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from layerwise.encoder import StagedEncoder
from layerwise.image_encoder import ViTTail
from layerwise.stage import Stage

NORM_MACS = {nn.LayerNorm: 5, nn.GroupNorm: 5, nn.BatchNorm1d: 2, nn.BatchNorm2d: 2}
"""Multiply-accumulates for each normalised element; a batch norm applies running statistics, a scale and a shift."""

TRAINING_PASSES = 3
"""Cost of a trained part in forward passes: forward once, backward twice."""

ALIGNED_VIEWS = 2
"""Views that representation alignment takes through the received model, however many the objective counts."""

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True)
class PaperCost:
    """Cost of one client over one or more rounds, in the paper's conventions.

    Args:
        macs: Multiply-accumulates of one sample, summed over views, local epochs and rounds.
        down_bytes: Bytes from the server to the client.
        up_bytes: Bytes from the client to the server.
    """

    macs: int = 0
    down_bytes: int = 0
    up_bytes: int = 0

    @property
    def gflops(self) -> float:
        """10^9 multiply-accumulates, which the paper calls GFLOPs."""
        return self.macs / 1e9

    @property
    def traffic_gb(self) -> float:
        """Traffic of both directions in units of 1000 MiB, which the paper calls GB."""
        return (self.down_bytes + self.up_bytes) / 1024**2 / 1000

    def __add__(self, other: PaperCost) -> PaperCost:
        return PaperCost(self.macs + other.macs, self.down_bytes + other.down_bytes, self.up_bytes + other.up_bytes)

    def __mul__(self, rounds: int) -> PaperCost:
        return PaperCost(self.macs * rounds, self.down_bytes * rounds, self.up_bytes * rounds)


@dataclass(frozen=True)
class PartCost:
    """Cost of one part of a model.

    Args:
        macs: Multiply-accumulates of one sample's forward pass.
        size: Bytes of the state dict.
    """

    macs: int = 0
    size: int = 0

    def __add__(self, other: PartCost) -> PartCost:
        return PartCost(self.macs + other.macs, self.size + other.size)


@dataclass(frozen=True)
class LayerShare:
    """Cost of a stage's round, as fractions of a round of end-to-end training.

    Args:
        communication: Share of the bytes, both directions together.
        computation: Share of the multiply-accumulates.
    """

    communication: float
    computation: float


def paper_cost(
    encoder: StagedEncoder,
    stages: Sequence[Stage],
    heads: Mapping[str, nn.Module],
    local_epochs: int,
    views: int,
    *,
    downloads_all: bool = False,
    aligned: bool = False,
) -> PaperCost:
    """Return the cost of one client that takes part in every round of ``stages``: a whole run, or a part of it.

    Args:
        encoder: Full encoder; it is left unchanged and may lie on any device.
        stages: Stages with their rounds; with a layer budget, as ``Scheme.for_client`` cuts them.
        heads: Heads in forward order: the first takes the encoder's features, each further one the output of the one
            before.
        local_epochs: Epochs a client trains in each round.
        views: Number of views of a sample that are counted. The paper counts one for MoCo v3 and BYOL, two for SimCLR.
        downloads_all: Count the frozen parts in every round's download: the paper's worst case of layer-wise training,
            a client that holds nothing yet. Schemes without frozen parts cost the same.
        aligned: Count representation alignment: a forward pass of both views through the present blocks below the
            newest. The paper prints two sums and no rule (table 6); this one gives both.

    Raises:
        ValueError: ``local_epochs`` or ``views`` is less than 1.
    """
    if local_epochs < 1:
        raise ValueError(f"local_epochs must be at least 1, got {local_epochs}")
    if views < 1:
        raise ValueError(f"views must be at least 1, got {views}")
    parts = part_costs(encoder)
    head = sum(head_costs(heads, *encoder.spec.positions, encoder.feature_dim).values(), PartCost())
    total = PaperCost()
    for stage in stages:
        macs = views * _sample_macs(parts, head, stage) + (_alignment_macs(parts, stage) if aligned else 0)
        sent = sum((parts[name] for name in _counted(stage)), head).size
        frozen = sum(parts[name].size for name in stage.frozen_parts()) if downloads_all else 0
        total += PaperCost(macs * local_epochs, sent + frozen, sent) * stage.rounds
    return total


def layer_shares(encoder: StagedEncoder, stages: Sequence[Stage]) -> list[LayerShare]:
    """Count the savings of each stage in layers, as Guo et al. (arXiv 2309.05213) do, without stem, tail and heads.

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


def part_costs(encoder: StagedEncoder) -> dict[str, PartCost]:
    """Return the costs of the encoder's parts by name, for one image or text of its spec's size."""
    shadow, spec, run = _on_meta(encoder), encoder.spec, _run_once_each()
    macs: dict[str, int] = {}
    sample = torch.empty(1, *spec.input_shape, dtype=spec.input_dtype, device="meta")
    macs["stem"], hidden = run(shadow.stem, sample)
    if isinstance(shadow.tail, ViTTail):
        hidden = hidden[:, shadow.tail.prefix_tokens :]
    for i, block in enumerate(shadow.blocks):
        macs[f"block.{i}"], hidden = run(block, hidden)
        macs[f"output.{i}"], _ = run(shadow.outputs[i], hidden)
    macs["tail"], _ = run(shadow.tail, hidden)
    for i, (layer, width) in enumerate(zip(shadow.reshape, shadow.widths, strict=True)):
        macs[f"reshape.{i}"], _ = run(layer, torch.empty(1, width, device="meta"))
    costs = {name: PartCost(macs.get(name, 0), _state_size(part)) for name, part in encoder.parts().items()}
    for i in range(len(encoder.blocks)):
        # The paper knows no narrower clients: a block counts with all groups.
        costs[f"block.{i}"] += sum((costs.pop(name) for name in encoder.group_parts(i)), PartCost())
    return costs


def head_costs(heads: Mapping[str, nn.Module], *feature_shape: int) -> dict[str, PartCost]:
    """Return the costs of the heads by name, chained behind features (1, *feature_shape)."""
    hidden = torch.empty(1, *feature_shape, device="meta")
    costs = {}
    for name, head in heads.items():
        macs, hidden = _run(_on_meta(head), hidden)
        costs[name] = PartCost(macs, _state_size(head))
    return costs


def _counted(stage: Stage) -> list[str]:
    """Return the trained parts that the paper counts: all but the final norm and the reshaping layer."""
    return [name for name in stage.trained_parts() if name != "tail" and not name.startswith(("reshape.", "width."))]


def _sample_macs(parts: Mapping[str, PartCost], head: PartCost, stage: Stage) -> int:
    trained = sum((parts[name] for name in _counted(stage)), head).macs
    frozen = sum(parts[name].macs for name in stage.frozen_parts())
    # Gradients of adapters flow back through their frozen blocks: one more pass of those, for the input's gradient.
    adapted = sum(parts[f"block.{i}"].macs for i in stage.trained) if stage.adapters else 0
    return TRAINING_PASSES * trained + frozen + adapted


def _alignment_macs(parts: Mapping[str, PartCost], stage: Stage) -> int:
    return ALIGNED_VIEWS * sum(parts[f"block.{i}"].macs for i in stage.present[:-1])


def _on_meta(module: ModuleT) -> ModuleT:
    """Copy a module to the meta device for evaluation: tensors have shapes but no contents, so none is copied."""
    state = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor.detach().to("meta") for tensor in state}).eval()


def _run_once_each() -> Callable[[nn.Module, Tensor], tuple[int, Tensor]]:
    """Return a cached ``_run`` for modules that print alike, because the blocks of a ViT cost the same."""
    known: dict[tuple[str, torch.Size], tuple[int, Tensor]] = {}

    def run(module: nn.Module, inputs: Tensor) -> tuple[int, Tensor]:
        key = (repr(module), inputs.shape)
        if key not in known:
            known[key] = _run(module, inputs)
        return known[key]

    return run


def _run(module: nn.Module, inputs: Tensor) -> tuple[int, Tensor]:
    """Return the multiply-accumulates of one forward pass, and its output."""
    norm_macs = []
    handles = [
        layer.register_forward_hook(lambda _, args, output, each=each: norm_macs.append(each * output.numel()))
        for layer in module.modules()
        for kind, each in NORM_MACS.items()
        if isinstance(layer, kind)
    ]
    with torch.no_grad(), FlopCounterMode(display=False) as products:
        output = module(inputs)
    for handle in handles:
        handle.remove()
    # torch counts a multiplication and an addition as two operations.
    return products.get_total_flops() // 2 + sum(norm_macs), output


def _state_size(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.state_dict().values())
