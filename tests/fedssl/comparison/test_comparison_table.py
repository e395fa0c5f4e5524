"""The table in a terminal, as Markdown and as CSV; numbers by hand."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
from finished_runs import configuration, results
from rich.console import Console

from fedssl.comparison.rows import Row, group_runs
from fedssl.comparison.run import Run
from fedssl.comparison.table import as_csv, as_markdown, for_terminal, make_tables, percent


def printed(rows: list[Row], width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    for table in make_tables(rows):
        console.print(for_terminal(table).rich(width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_means_deviations_and_shares(six_runs: list[Run]) -> None:
    [table] = make_tables(group_runs(six_runs))
    expected = {
        "scheme": ["random init", "end-to-end", "layer-wise"],
        "seeds": ["", "0, 1, 2", "0, 1"],
        "kNN top-1 %": ["51.00 ± 1.00", "92.00 ± 2.00", "87.00 ± 1.41"],
        "linear top-1 %": ["60.00", "93.00 ± 2.00", "88.00 ± 1.41"],
        "received MiB": ["", "80.00", "20.00 ± 1.41 (25 %)"],
        "sent MiB": ["", "80.00", "80.00 (100 %)"],
        "GMACs": ["", "1,000.00", "1,000.00 (100 %)"],
        "kept MiB": ["", "50.00", "10.00 (20 %)"],
        "wall s": ["", "10", "10"],
    }
    assert dict(zip(table.header, map(list, zip(*table.rows, strict=True)), strict=True)) == expected
    assert table.failures == ["layer-wise, seed 2: no memory"]
    assert table.common == {
        "SSL method": "SimCLR",
        "backbone": "vit, 6 blocks",
        "clients": "3 of 6 a round",
        "partition": "Dirichlet(beta=0.5)",
        "rounds": "4 of 2 local epochs",
        "commit": "abc",
    }


def test_raw_pixels_are_those_of_all_encoders() -> None:
    pixels = {"raw_pixels_knn_top1": 97.0}
    runs = [Run(Path(name), configuration(encoder={"name": name}), results() | pixels) for name in ("vit", "wider")]
    [table] = make_tables(group_runs(runs))
    assert [row[0] for row in table.rows] == ["raw pixels", "vit", "wider"]
    assert table.rows[0][table.header.index("kNN top-1 %")] == "97.00"


def test_a_share_has_a_decimal_where_it_is_small() -> None:
    assert (percent(1.5), percent(0.1), percent(0.0321)) == ("150 %", "10 %", "3.2 %")


def test_a_row_without_any_results_stays_in_the_table() -> None:
    ended = Row({"scheme": "a"}, [Run(Path("a"), configuration(), results())])
    failed = Row({"scheme": "b"}, [Run(Path("b"), configuration(), {}, "no memory")])
    [table] = make_tables([ended, failed])
    assert table.rows[-1][0] == "b"
    assert set(table.rows[-1][1:]) == {""}
    assert table.failures == ["b, seed 0: no memory"]
    [table] = make_tables([failed])
    assert table.rows == [["b"]]


def test_other_data_sets_have_other_tables(six_runs: list[Run]) -> None:
    rows = group_runs(six_runs)
    other = Row({"scheme": "layer-wise"}, [Run(Path("o"), configuration(dataset="cifar10"), results(0, "layer-wise"))])
    first, second = make_tables([*rows, other])
    assert (first.title, second.title) == ("digits", "cifar10")
    assert len(first.rows) == 3
    assert not any("%" in cell for cell in second.rows[-1])


def test_another_encoder_has_no_common_beginning(six_runs: list[Run]) -> None:
    full, cheap = group_runs(six_runs)
    wider = [replace(run, configuration=configuration(run.seed, encoder={"name": "wide"})) for run in cheap.runs]
    [table] = make_tables([full, Row(cheap.labels, wider)])
    assert [cells[0] for cells in table.rows] == ["end-to-end", "layer-wise"]


@pytest.mark.parametrize("width", [80, 160])
def test_a_terminal_shows_everything(six_runs: list[Run], width: int) -> None:
    text = printed(group_runs(six_runs), width)
    assert all(len(line) <= width for line in text.splitlines())
    words = " ".join(text.split())
    assert "backbone vit, 6 blocks" in words
    assert "not finished: layer-wise, seed 2: no memory" in words
    assert ("92.00 ± 2.00" in text) == (width == 160)
    for number in ("92.00", "± 2.00", "(25 %)", "1,000.00"):
        assert number in text


def test_markdown(six_runs: list[Run]) -> None:
    text = as_markdown(make_tables(group_runs(six_runs)), "python train.py compare x")
    assert "| layer-wise | 0, 1 | 87.00 ± 1.41 |" in text
    assert "- partition: Dirichlet(beta=0.5)\n" in text
    assert "- not finished: layer-wise, seed 2: no memory\n" in text
    assert text.endswith("`python train.py compare x`\n")


def test_baselines_without_an_encoder_serve_rows_of_all_encoders(six_runs: list[Run]) -> None:
    full, cheap = group_runs(six_runs)
    found = {"raw_pixels_knn_top1": 97.0, "majority_top1": 10.0}
    wider = [replace(run, configuration=configuration(run.seed, encoder={"name": "wide"})) for run in cheap.runs]
    known = [replace(run, results=run.results | found) for run in full.runs]
    [table] = make_tables([Row(full.labels, known), Row(cheap.labels, wider)])
    at = table.header.index("kNN top-1 %")
    shown = {line[0]: line[at : at + 2] for line in table.rows[:2]}
    assert shown == {"raw pixels": ["97.00", ""], "the most frequent class": ["10.00", "10.00"]}


def test_centralised_training_has_differences_but_no_costs(six_runs: list[Run]) -> None:
    federal = ("clients", "rounds", "local_epochs", "stage_rounds", "down_", "up_", "macs_", "peak_")
    runs = []
    for seed, knn in enumerate((93.0, 94.0, 95.0)):
        found = {key: each for key, each in results(seed, "centralized", knn).items() if not key.startswith(federal)}
        central = configuration(seed)
        central["model"]["class_path"] = "fedssl.CentralizedSSL"
        del central["data"]["init_args"]["partition"]
        runs.append(Run(Path(f"c{seed}"), central, found))
    rows = [*group_runs(six_runs), Row({"scheme": "centralised"}, runs)]
    [table] = make_tables(rows)
    line = dict(zip(table.header, table.rows[-1], strict=True))
    assert (line["kNN top-1 %"], line["GMACs"], line["clients"]) == ("94.00 ± 1.00", "", "")
    [differences] = table.further
    assert differences.rows[-1][:4] == ["centralised", "end-to-end", "3", "+2.00 [-0.48, +4.48]"]


def test_csv_has_full_numbers(six_runs: list[Run]) -> None:
    full, cheap = csv.DictReader(io.StringIO(as_csv(group_runs(six_runs))))
    assert (full["scheme"], full["data set"], full["not finished"]) == ("end-to-end", "digits", "")
    assert float(full["kNN top-1 % sd"]) == 2
    assert float(cheap["received MiB mean"]) == 20
    assert float(cheap["received MiB share"]) == 0.25
    assert (float(cheap["kNN top-1 % difference"]), cheap["kNN top-1 % difference seeds"]) == (-4, "2")
    assert (cheap["reference"], full["reference"]) == ("end-to-end", "")
    assert cheap["not finished"] == "seed 2: no memory"
    assert cheap["folders"] == "l0 l1 l2"
