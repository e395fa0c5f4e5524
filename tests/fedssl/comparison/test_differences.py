"""Paired differences between rows and the headline that they allow; numbers by hand."""

from pathlib import Path

import pytest
from finished_runs import configuration, results

from fedssl.comparison.differences import headline, table_of_differences
from fedssl.comparison.rows import Row, check_reference, reference
from fedssl.comparison.run import Run


def row(scheme: str, *knn: float, first_seed: int = 0, **labels: str) -> Row:
    runs = [
        Run(Path(f"{scheme}{seed}"), configuration(seed), results(seed, scheme, value))
        for seed, value in enumerate(knn, first_seed)
    ]
    return Row({"scheme": scheme} | labels, runs)


def test_rows_are_set_against_end_to_end_training_seed_by_seed() -> None:
    # Differences -1, -2, -3: mean -2, deviation 1, reach 4.3027 / sqrt(3) = 2.484.
    table = table_of_differences([row("end-to-end", 90, 92, 94), row("layer-wise", 89, 90, 91)])
    assert table is not None
    assert table.header == ["row", "reference", "shared seeds", "kNN top-1 %", "linear top-1 %"]
    assert table.rows == [["layer-wise", "end-to-end", "3", "-2.00 [-4.48, +0.48]", "-2.00 [-4.48, +0.48]"]]


def test_only_shared_seeds_count_and_one_gives_no_interval() -> None:
    table = table_of_differences([row("end-to-end", 90, 92), row("layer-wise", 89, 70, first_seed=1)])
    assert table is not None
    assert table.rows[0][2:4] == ["1", "-3.00"]
    assert table_of_differences([row("end-to-end", 90), row("layer-wise", 89, first_seed=5)]) is None


def test_an_asterisk_stands_for_the_whole_column() -> None:
    # Differences 1.9, 2.0, 2.1 and -1, -2, -3 of mean 2 and -2: p = 0.0008 and 0.074.
    rows = [row("end-to-end", 90, 92, 94), row("near", 91.9, 94.0, 96.1), row("far", 89, 90, 91)]
    table = table_of_differences(rows)
    assert table is not None
    assert [line[3] for line in table.rows] == ["+2.00 [+1.75, +2.25] *", "-2.00 [-4.48, +0.48]"]


def test_another_reference_can_be_named() -> None:
    rows = [row(scheme, 90, method=method) for method in ("BYOL", "SimCLR") for scheme in ("end-to-end", "layer-wise")]
    assert [reference(each, rows, "layer-wise") for each in rows] == [rows[1], rows[1], rows[3], rows[3]]
    assert [reference(each, rows, "end-to-end, SimCLR") for each in rows] == [rows[2]] * 4
    check_reference("SimCLR", [each.labels for each in rows])
    with pytest.raises(ValueError, match=r"--reference 'MoCo' is no row and no choice; rows are: end-to-end, BYOL \|"):
        check_reference("MoCo", [each.labels for each in rows])


def test_a_headline_names_the_best_row_only_if_it_differs_from_all_others() -> None:
    best, other, close = row("a", 91.9, 94.0, 96.1), row("b", 90, 92, 94), row("c", 91, 94, 95)
    assert headline([other, best]) == (
        "On digits, the best row by kNN accuracy is a, 94.00 ± 2.10 %: ahead of b, the next, by +2.00 [+1.75, +2.25] "
        "points over 3 seeds."
    )
    assert headline([other, best, close]) == (
        "On digits, no row is shown to be the best: the highest mean kNN accuracy is that of a, 94.00 ± 2.10 %, but "
        "its lead over c can be chance, +0.67 [-0.79, +2.12] points over 3 seeds, judged together with 1 more (Holm)."
    )


def test_a_headline_needs_several_seeds() -> None:
    assert "no row is shown to be the best" in headline([row("a", 99), row("b", 50)])
    assert "+49.00 points with one seed, which gives no interval" in headline([row("a", 99), row("b", 50)])
    assert "+4.00 points the same with all 2 seeds" in headline([row("a", 54, 60), row("b", 50, 56)])
    assert "as they share no seed" in headline([row("a", 54), row("b", 50, first_seed=1)])
    assert headline([row("a", 54)]) == "On digits, the only row that has ended is a, 54.00 % kNN accuracy."
    failed = Row({"scheme": "a"}, [Run(Path("a"), configuration(), {}, "no memory")])
    assert headline([failed]) == "No run on digits has ended."
