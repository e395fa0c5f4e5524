"""A stage is data: which blocks exist, which are frozen, which are trained."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from layerwise.encoder import StagedEncoder


@dataclass(frozen=True)
class Stage:
    """One stretch of training rounds with a fixed set of present and trained layers.

    Args:
        index: Position among the run's stages, from 0.
        present: Blocks in the model, in forward order. Some before the last may be left out (depth dropout).
        trained: Blocks that are trained, the last ones of ``present``. The blocks before them are frozen:
            they run forward only.
        trains_stem: Whether the stem (patch, class and position embedding) is trained too.
        rounds: Communication rounds the stage lasts.
    """

    index: int
    present: tuple[int, ...]
    trained: tuple[int, ...]
    trains_stem: bool
    rounds: int

    def __post_init__(self) -> None:
        assert self.trained, self
        assert self.present[-len(self.trained) :] == self.trained, self
        assert not self.trains_stem or self.trained == self.present, self

    @property
    def frozen(self) -> tuple[int, ...]:
        """Blocks that are present but not trained."""
        return self.present[: len(self.present) - len(self.trained)]

    @property
    def depth(self) -> int:
        """Number of leading encoder blocks this stage's model reaches to."""
        return self.present[-1] + 1

    def frozen_parts(self) -> list[str]:
        """Names of the encoder parts that clients need but do not train."""
        stem = [] if self.trains_stem else ["stem"]
        return stem + [f"block.{i}" for i in self.frozen]

    def trained_parts(self) -> list[str]:
        """Names of the encoder parts that travel both ways in every round.

        The final norm (``tail``) is among them in every stage (our reading): it normalises a different
        block's output in each stage. The paper's traffic figures count it in the first stage only.
        """
        stem = ["stem"] if self.trains_stem else []
        newest = self.present[-1]
        return [*stem, *(f"block.{i}" for i in self.trained), f"output.{newest}", "tail", f"reshape.{newest}"]


def split_encoder(encoder: StagedEncoder, stage: Stage) -> tuple[nn.Sequential, nn.Sequential]:
    """Splits the encoder into the frozen prefix and the active part of a stage.

    Both share their modules with ``encoder``. The prefix maps images to the active part's input (it is empty
    where the stem is trained), the active part maps that to features (B, D).
    """
    parts = encoder.parts()
    prefix = nn.Sequential(*(parts[name] for name in stage.frozen_parts()))
    active = nn.Sequential(*(parts[name] for name in stage.trained_parts()))
    return prefix, active
