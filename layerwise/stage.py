"""Stages as data: the blocks that exist, are frozen and are trained over a stretch of rounds."""

from __future__ import annotations

from dataclasses import dataclass

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
    """

    index: int
    present: tuple[int, ...]
    trained: tuple[int, ...]
    trains_stem: bool
    rounds: int
    adapters: int = 0

    def __post_init__(self) -> None:
        assert self.trained, self
        assert self.present[-len(self.trained) :] == self.trained, self
        assert not self.trains_stem or (self.trained == self.present and not self.adapters), self

    @property
    def frozen(self) -> tuple[int, ...]:
        """Blocks that are present but not trained."""
        return self.present[: len(self.present) - len(self.trained)]

    @property
    def num_trained(self) -> int:
        """Number of trained blocks, or of trained adapters in each."""
        return self.adapters or len(self.trained)

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
        in each stage. The paper's traffic figures count it in the first stage only.
        """
        stem = ["stem"] if self.trains_stem else []
        newest = self.present[-1]
        blocks = [name for i in self.trained for name in self.adapter_parts(i) or [f"block.{i}"]]
        return [*stem, *blocks, f"output.{newest}", "tail", f"reshape.{newest}"]

    def adapter_parts(self, block: int) -> list[str]:
        """Return the names of the adapters that are trained in place of a trained block."""
        return [f"adapter.{block}.{number}" for number in range(self.adapters)]


def split_encoder(encoder: StagedEncoder, stage: Stage) -> tuple[nn.Sequential, nn.Sequential]:
    """Split the encoder into the frozen prefix and the active part of a stage.

    Both share their modules with ``encoder``. The prefix maps images to the active part's input (it is empty where the
    stem is trained), the active part maps that to features (B, D). With adapters the active part has frozen blocks too.
    """
    parts, newest = encoder.parts(), stage.present[-1]

    def active_block(index: int) -> nn.Module:
        block, adapters = parts[f"block.{index}"], stage.adapter_parts(index)
        return AdaptedBlock(block, [parts[name] for name in adapters]) if adapters else block

    frozen = [parts[f"block.{i}"] for i in stage.frozen]
    active = [active_block(i) for i in stage.trained]
    active += [parts[f"output.{newest}"], parts["tail"], parts[f"reshape.{newest}"]]
    if stage.trains_stem:
        return nn.Sequential(), nn.Sequential(parts["stem"], *active)
    return nn.Sequential(parts["stem"], *frozen), nn.Sequential(*active)
