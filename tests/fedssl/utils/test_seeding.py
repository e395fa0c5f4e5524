"""Seeds by purpose."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from fedssl.utils.seeding import derive_seed, numpy_generator, run_seed, torch_generator


def test_seeds_never_change() -> None:
    assert derive_seed(0, "cohort") == 8837352141909043858
    assert derive_seed(42, "local", 3, 7) == 6414732487337367450


def test_seeds_differ_by_seed_purpose_and_ids() -> None:
    seeds = [derive_seed(seed, purpose) for seed, purpose in product(range(10), ("a", "b"))]
    seeds += [derive_seed(*case) for case in product(range(10), ("a", "b"), range(10))]
    seeds += [derive_seed(*case) for case in product(range(5), ("a", "b"), range(12), range(12))]
    assert len(set(seeds)) == len(seeds) == 20 + 200 + 1440
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_of_numpy_integers_are_those_of_python() -> None:
    int_of_numpy: Any = np.int64(2)
    assert derive_seed(1, "a", int_of_numpy) == derive_seed(1, "a", 2)


def test_generators_follow_the_seed_and_not_each_other() -> None:
    first, second = (torch_generator(1, "a", 2) for _ in range(2))
    assert torch.equal(torch.rand(5, generator=first), torch.rand(5, generator=second))
    other = torch.rand(5, generator=torch_generator(1, "a", 3))
    assert not torch.equal(torch.rand(5, generator=torch_generator(1, "a", 2)), other)
    assert np.array_equal(numpy_generator(1, "a").random(5), numpy_generator(1, "a").random(5))
    assert not np.array_equal(numpy_generator(1, "a").random(5), numpy_generator(2, "a").random(5))


def legacy_state() -> Any:
    """NumPy's global state."""
    return np.random.get_state(legacy=True)[1].copy()  # type: ignore[index]


def test_generators_leave_the_global_state_alone() -> None:
    state, np_state = torch.get_rng_state(), legacy_state()
    torch_generator(1, "a")
    numpy_generator(1, "a").random()
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(legacy_state(), np_state)


def test_run_seed_prefers_the_given_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert run_seed(None) == 7
    assert run_seed(0) == 0
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert run_seed(3) == 3
    with pytest.raises(ValueError, match=r"give a seed, or call .*seed_everything"):
        run_seed(None)
