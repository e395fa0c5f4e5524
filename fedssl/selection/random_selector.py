"""Selection by chance alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedssl.selection.selector import Candidate, Selector, by_id


class RandomSelector(Selector):
    """Every candidate is as likely; drawn without replacement (McMahan et al. 2017, arXiv 1602.05629)."""

    def select(self, candidates: Sequence[Candidate], size: int, round_: int, rng: np.random.Generator) -> list[int]:
        """A uniform draw; it depends on the candidates' number and order of ids alone."""
        ids = [candidate.client_id for candidate in by_id(candidates)]
        drawn = rng.choice(len(ids), min(size, len(ids)), replace=False)
        return [ids[position] for position in np.sort(drawn)]
