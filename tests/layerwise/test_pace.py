import math
from itertools import pairwise

import pytest
import torch

from layerwise import BlockPerturbation, PaceReading, block_perturbation, relative_slope


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def vectors(*rows):
    return [torch.tensor(row, dtype=torch.float32) for row in rows]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (vectors([0, 0], [1, -1], [2, -2]), 1.0),  # all updates agree
        (vectors([0], [1], [0], [1], [0]), 0.0),  # they cancel
        (vectors([0, 0], [2, 1], [1, 2]), (1 + 2) / (3 + 2)),
        (vectors([0], [3], [2], [4]), 4 / 6),
        (vectors([5, 5], [5, 5], [5, 5]), 0.0),  # nothing moves
    ],
)
def test_perturbation_by_hand(weights, expected):
    assert block_perturbation(weights) == pytest.approx(expected)


def test_perturbation_is_the_quotient_of_the_sums():
    weights = list(torch.randn(7, 50, generator=generator()).double())
    updates = [after - before for before, after in pairwise(weights)]
    expected = sum(updates).abs().sum() / sum(update.abs().sum() for update in updates)
    assert block_perturbation(weights) == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 2.0, 3.0], 1 * 3 / 3),
        ([0.5, 0.5, 0.5, 0.5], 0.0),
        ([4.0, 2.0], -2 * 2 / 2),
        ([1.0, 3.0, 2.0], 0.5 * 3 / 2),  # line 1.5, 2, 2.5
        ([0.0, 0.0, 0.0], 0.0),
        ([0.2, 0.1, 0.0], -0.1 * 3 / 1e-8),
    ],
)
def test_slope_by_hand(values, expected):
    assert relative_slope(values) == pytest.approx(expected)


def follow(pace, weights):
    pace.begin_stage([weights[0]], generator())
    return [pace.observe([row]) for row in weights[1:]]


def test_readings_by_hand():
    """Window 2, means of 2: P from round 2 on, M from round 3, slope from round 4."""
    pace = BlockPerturbation(window=2, smoothing=2, slope_threshold=0.5, patience=2)
    rows = vectors([0], [1], [2], [1.5], [1.5], [2.5], [3.5], [4.5])
    perturbations = [2 / 2, 0.5 / 1.5, 0.5 / 0.5, 1 / 1, 2 / 2, 2 / 2]
    means = [2 / 3, 2 / 3, 1.0, 1.0, 1.0]
    slopes = [0.0, (1 - 2 / 3) * 2 / 1, 0.0, 0.0]
    converged = [1, 0, 1, 2]
    expected = [PaceReading(None, None, None, 0, False), PaceReading(1.0, None, None, 0, False)]
    readings = follow(pace, rows)
    assert readings[0] == expected[0]
    assert [reading.perturbation for reading in readings[1:]] == pytest.approx(perturbations)
    assert [reading.smoothed for reading in readings[2:]] == pytest.approx(means)
    assert [reading.slope for reading in readings[3:]] == pytest.approx(slopes)
    assert [reading.converged for reading in readings[3:]] == converged
    assert [reading.freeze for reading in readings] == [False] * 6 + [True]
    assert readings[1] == expected[1]
    assert readings[2].slope is None


def test_defaults_freeze_after_58_rounds_at_the_earliest():
    pace = BlockPerturbation()
    readings = follow(pace, [torch.tensor([float(i)]) for i in range(61)])
    found = [next(i + 1 for i, r in enumerate(readings) if getattr(r, key) is not None)
             for key in ("perturbation", "smoothed", "slope")]  # fmt: skip
    assert found == [6, 25, 44]
    assert [reading.freeze for reading in readings].index(True) + 1 == 58
    assert all(reading.perturbation == 1 for reading in readings[5:])


def test_a_block_freezes_when_only_noise_is_left():
    """A drift that dies out under constant noise: P falls from near 1 to that of a random walk, near 1 / sqrt(4)."""
    noise, weights = generator(1), [torch.zeros(2000)]
    for step in range(80):
        weights.append(weights[-1] + 0.8**step * 10 + torch.randn(2000, generator=noise))
    pace = BlockPerturbation(window=4, smoothing=5, slope_threshold=0.1, patience=5)
    readings = follow(pace, weights)
    frozen = [reading.freeze for reading in readings].index(True)
    assert readings[3].perturbation > 0.95
    assert readings[frozen].perturbation == pytest.approx(0.5, abs=0.05)
    falling = readings[14:24]
    assert all(reading.slope < -0.1 and reading.converged == 0 for reading in falling)
    assert frozen > 24


def test_updates_that_agree_steadily_are_flat_too():
    """The criterion looks at the slope alone."""
    readings = follow(BlockPerturbation(2, 2, 0.2, 2), [torch.tensor([float(i)]) for i in range(8)])
    assert (readings[-1].perturbation, readings[-1].slope, readings[-1].freeze) == (1.0, 0.0, True)


def test_a_block_that_never_moves_converges():
    readings = follow(BlockPerturbation(2, 2, 0.1, 3), [torch.ones(4)] * 10)
    assert readings[-1] == PaceReading(0.0, 0.0, 0.0, 6, True)


def test_sample_is_drawn_once_in_order_and_by_the_generator():
    pace, weights = BlockPerturbation(sample_size=10), [torch.arange(30.0), torch.arange(30.0, 60.0).view(5, 6)]
    pace.begin_stage(weights, generator(4))
    state = pace.state_dict()
    indices = state["indices"]
    assert len(set(indices.tolist())) == 10
    assert torch.equal(indices, indices.sort().values)
    assert torch.equal(state["vectors"][0], indices.float())
    pace.observe([weight + 100 for weight in weights])
    assert torch.equal(pace.state_dict()["vectors"][1], indices.float() + 100)
    same, other = BlockPerturbation(sample_size=10), BlockPerturbation(sample_size=10)
    same.begin_stage(weights, generator(4))
    other.begin_stage(weights, generator(5))
    assert torch.equal(same.state_dict()["indices"], indices)
    assert not torch.equal(other.state_dict()["indices"], indices)


def test_small_blocks_are_followed_whole_and_nothing_is_drawn():
    pace, source = BlockPerturbation(sample_size=6), generator()
    pace.begin_stage([torch.zeros(2, 3)], source)
    assert pace.state_dict()["indices"].tolist() == list(range(6))
    assert torch.equal(source.get_state(), generator().get_state())


def test_the_global_random_state_is_untouched():
    before = torch.get_rng_state()
    BlockPerturbation(sample_size=3).begin_stage([torch.zeros(9)], generator())
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_may_change_in_place():
    weight = torch.nn.Parameter(torch.zeros(3))
    pace = BlockPerturbation(window=2)
    pace.begin_stage([weight], generator())
    for reading in (None, 1.0):
        with torch.no_grad():
            weight.add_(1)
        assert pace.observe([weight]).perturbation == reading


@pytest.mark.parametrize("interruption", [0, 1, 4, 9, 13, 20])
def test_resume_is_exact(interruption, tmp_path):
    settings = {"window": 3, "smoothing": 4, "slope_threshold": 0.3, "patience": 3, "sample_size": 20}
    weights = list(torch.randn(25, 40, generator=generator()).cumsum(0))
    whole = follow(BlockPerturbation(**settings), weights)
    first, second = BlockPerturbation(**settings), BlockPerturbation(**settings)
    first.begin_stage([weights[0]], generator())
    readings = [first.observe([row]) for row in weights[1 : 1 + interruption]]
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    readings += [second.observe([row]) for row in weights[1 + interruption :]]
    assert readings == whole
    assert any(reading.slope is not None for reading in readings)


def test_a_state_does_not_follow_the_original():
    pace = BlockPerturbation(window=2)
    pace.begin_stage([torch.zeros(3)], generator())
    state = pace.state_dict()
    pace.observe([torch.ones(3)])
    assert len(state["vectors"]) == 1


def test_a_new_stage_starts_anew():
    pace = BlockPerturbation(2, 2, 0.5, 1)
    assert follow(pace, [torch.tensor([float(i)]) for i in range(9)])[-1].freeze
    pace.begin_stage([torch.zeros(5)], generator())
    assert pace.observe([torch.ones(5)]) == PaceReading(None, None, None, 0, False)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused_and_forgotten(bad):
    pace = BlockPerturbation(window=2)
    with pytest.raises(ValueError, match="1 of the block's 3 weights are not finite"):
        pace.begin_stage([torch.tensor([0, bad, 0])], generator())
    pace.begin_stage([torch.zeros(3)], generator())
    pace.observe([torch.ones(3)])
    with pytest.raises(ValueError, match="1 of the block's 3 weights are not finite"):
        pace.observe([torch.tensor([0, bad, 0])])
    assert pace.observe([2 * torch.ones(3)]).perturbation == 1


def test_another_block_is_refused():
    pace = BlockPerturbation()
    with pytest.raises(ValueError, match="the block has no weights"):
        pace.begin_stage([], generator())
    with pytest.raises(ValueError, match="the block has 3 weights, the stage began with 0"):
        pace.observe([torch.zeros(3)])
    pace.begin_stage([torch.zeros(2)], generator())
    with pytest.raises(ValueError, match="the block has 3 weights, the stage began with 2"):
        pace.observe([torch.zeros(3)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 1}, "window must be at least 2, got 1"),
        ({"smoothing": 1}, "smoothing must be at least 2, got 1"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
        ({"sample_size": 0}, "sample_size must be at least 1, got 0"),
        ({"slope_threshold": 0.0}, "slope_threshold must be positive and finite, got 0.0"),
        ({"slope_threshold": math.nan}, "slope_threshold must be positive and finite, got nan"),
        ({"slope_threshold": math.inf}, "slope_threshold must be positive and finite, got inf"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        BlockPerturbation(**settings)
