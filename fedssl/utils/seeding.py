"""Random generators, one for each purpose, derived from (run seed, purpose, round, client, ...).

Hence results do not depend on the order of execution, the engine or the number of workers, and a resumed run draws what
the uninterrupted run would have drawn.
"""

from __future__ import annotations

import hashlib
import os

import numpy as np
import torch

CPU = torch.device("cpu")


def derive_seed(seed: int, purpose: str, *ids: int) -> int:
    """Derive a 63-bit seed for one purpose, the same on every machine and Python version."""
    text = ":".join([str(seed), purpose, *map(str, ids)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def torch_generator(seed: int, purpose: str, *ids: int, device: torch.device = CPU) -> torch.Generator:
    """Return a generator for one purpose; the same seed draws other numbers on another kind of device."""
    return torch.Generator(device).manual_seed(derive_seed(seed, purpose, *ids))


def numpy_generator(seed: int, purpose: str, *ids: int) -> np.random.Generator:
    """Return a NumPy generator for one purpose."""
    return np.random.default_rng(derive_seed(seed, purpose, *ids))


def run_seed(seed: int | None) -> int:
    """Return the given seed, or else the one that Lightning's ``seed_everything`` set for this process.

    Raises:
        ValueError: No seed is given, and none was set.
    """
    if seed is not None:
        return seed
    set_globally = os.environ.get("PL_GLOBAL_SEED")
    if set_globally is None:
        raise ValueError("give a seed, or call pytorch_lightning.seed_everything first")
    return int(set_globally)
