"""Statistics over seeds, by hand and against SciPy."""

import pytest
from scipy import stats

from fedssl.comparison.statistics import estimate_mean, holm, paired_difference

OWN, OTHER = {0: 91.0, 1: 93.0, 2: 95.0, 7: 50.0}, {2: 92.0, 1: 91.0, 0: 90.0, 9: 10.0}


def test_a_paired_difference_by_hand() -> None:
    found = paired_difference(OWN, OTHER)  # differences 1, 2, 3: mean 2, deviation 1, t(2, 0.975) = 4.3027
    assert found is not None
    assert (found.mean, found.number, found.error) == (2, 3, pytest.approx(3**-0.5))
    assert found.interval == pytest.approx((2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), abs=1e-4)
    assert found.text() == "+2.00 [-0.48, +4.48]"
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_intervals_and_p_values_are_those_of_scipy() -> None:
    own, other = [91.2, 90.4, 93.3, 92.0, 89.9], [90.1, 90.3, 91.0, 91.5, 90.2]
    found = paired_difference(dict(enumerate(own)), dict(enumerate(other)))
    expected = stats.ttest_rel(own, other)
    assert found is not None
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.p_value == pytest.approx(expected.pvalue)


def test_one_seed_and_equal_differences_have_no_interval() -> None:
    for values in ([-4.0], [0.3 - 0.1, 0.2]):
        found = estimate_mean(values)
        assert (found.interval, found.p_value) == (None, 1)
        assert found.text() == f"{values[0]:+.2f}"


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == [True, False, False]  # 0.01 <= 0.05/3, then 0.03 > 0.05/2
    assert holm([0.03, 0.01, 0.02]) == [True, True, True]  # 0.05/3, 0.05/2, 0.05
    assert holm([0.02, 0.02, 0.02]) == [False, False, False]
    assert holm([]) == []
