"""What to do with every activation: a plan as data."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from layerwise.memory.allocation import WIDTHS

LOSSLESS = 1
"""Bits of a value that takes two values only."""

Kind = Literal["recompute", "compress"]


@dataclass(frozen=True)
class Action:
    """What happens to an activation that is not kept.

    Args:
        kind: ``recompute``: dropped and rebuilt when backward needs it. ``compress``: kept in few bits.
        bits: Mean bits of a compressed value, 8, 4 or 2; 1 is the lossless form of masks; 0 if it is recomputed.
        segment: Module call with which a recomputed value is rebuilt, all at once; ``None`` rebuilds it alone.
    """

    kind: Kind
    bits: int = 0
    segment: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("recompute", "compress"):
            raise ValueError(f"an action must be 'recompute' or 'compress', got {self.kind!r}")
        allowed = (*WIDTHS, LOSSLESS) if self.kind == "compress" else (0,)
        if self.bits not in allowed:
            raise ValueError(f"bits to {self.kind} must be one of {allowed}, got {self.bits!r}")


@dataclass(frozen=True)
class MemoryPlan:
    """A plan for one training step; :func:`planned` carries it out.

    Bytes are those of the activations that autograd holds for backward at the worst moment of the step: kept ones,
    packed ones with their metadata, and transient ones, that is restored and rebuilt copies with the intermediate
    results of rebuilding. A storage counts once, parameters and buffers do not count. Neither does what a step
    needs without any saving: outputs and gradients of the running operations, workspace of kernels (that of the
    codec is at most about 5 MiB), and rounding by the allocator.

    Args:
        graph: :attr:`StepTrace.graph` of the step that it belongs to.
        budget_bytes: What was asked for.
        predicted_peak: Bytes at the worst moment.
        added_seconds: Predicted time that recomputing and compressing add to a step.
        actions: Action of each activation that is not kept, by its number in the trace.
    """

    graph: str
    budget_bytes: int
    predicted_peak: int
    added_seconds: float
    actions: dict[int, Action] = field(default_factory=dict)

    def to_json(self) -> str:
        """The plan as text."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> MemoryPlan:
        """The plan that :meth:`to_json` wrote.

        Raises:
            ValueError: The text is no plan.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            actions = {int(value): Action(**action) for value, action in fields.pop("actions").items()}
            return cls(**fields, actions=actions)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a memory plan: {error}") from error
