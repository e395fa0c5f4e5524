"""The metrics file and the identity of W&B runs."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb

from fedssl.training.tracking import MetricsCSV, log_again, logged_in, wandb_logger, wandb_mode


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def logged(path: Path, *metrics: tuple[int, dict[str, float]]) -> MetricsCSV:
    """A logger that saved after each of the metrics, as Lightning does."""
    logger = MetricsCSV(path)
    for step, values in metrics:
        logger.log_metrics(values, step)
        logger.save()
    return logger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "metrics.csv"


def test_metrics_of_a_step_share_a_row(path: Path) -> None:
    logged(path, (0, {"a": 1.5, "b": 2.0}), (0, {"c": 3.0}), (1, {"a": 4.0, "b": 5.0, "c": 6.0}), (1, {"b": 7.0}))
    assert rows(path) == [
        {"step": "0", "a": "1.5", "b": "2.0", "c": "3.0"},
        {"step": "1", "a": "4.0", "b": "7.0", "c": "6.0"},
    ]


def test_new_columns_rewrite_the_header(path: Path) -> None:
    logged(path, (0, {"a": 1.0}), (1, {"a": 2.0}), (2, {"b": 3.0}), (3, {"a": 4.0}))
    assert path.read_text().splitlines() == ["step,a,b", "0,1.0,", "1,2.0,", "2,,3.0", "3,4.0,"]


def test_rows_are_there_after_every_save(path: Path) -> None:
    logger = MetricsCSV(path)
    for step in range(5):
        logger.log_metrics({"a": float(step)}, step)
        logger.save()
        assert [row["a"] for row in rows(path)] == [*(f"{s + 0.5}" for s in range(step)), f"{float(step)}"]
        logger.log_metrics({"a": step + 0.5}, step)
        logger.save()
        assert rows(path)[-1]["a"] == f"{step + 0.5}"


def test_steps_may_be_skipped_or_saved_together(path: Path) -> None:
    logger = logged(path, (0, {"a": 1.0}), (7, {"a": 2.0}))
    for step in (8, 9, 12):
        logger.log_metrics({"a": float(step)}, step)
    logger.finalize("success")
    assert [row["step"] for row in rows(path)] == ["0", "7", "8", "9", "12"]


def test_a_shorter_row_leaves_nothing_of_the_longer_one(path: Path) -> None:
    logged(path, (0, {"a": 1.0}), (1, {"a": 0.123456789}), (1, {"a": 2.0}), (2, {"a": 3.0}))
    assert path.read_text().splitlines() == ["step,a", "0,1.0", "1,2.0", "2,3.0"]


def test_nothing_logged_writes_nothing(path: Path) -> None:
    logger = MetricsCSV(path)
    logger.save()
    logger.finalize("success")
    assert not path.exists()


def test_a_metric_without_a_step_is_of_step_zero(path: Path) -> None:
    logger = MetricsCSV(path)
    logger.log_metrics({"a": 1.0})
    logger.save()
    assert rows(path) == [{"step": "0", "a": "1.0"}]


def test_a_resumed_run_keeps_earlier_rows_and_replaces_later_ones(path: Path) -> None:
    logged(path, *((step, {"a": float(step)}) for step in range(5)))
    resumed = logged(path, (3, {"a": 30.0}))
    assert [(row["step"], row["a"]) for row in rows(path)] == [("0", "0.0"), ("1", "1.0"), ("2", "2.0"), ("3", "30.0")]
    resumed.log_metrics({"a": 40.0, "b": 1.0}, 4)
    resumed.save()
    assert path.read_text().splitlines() == ["step,a,b", "0,0.0,", "1,1.0,", "2,2.0,", "3,30.0,", "4,40.0,1.0"]


def test_a_resumed_run_keeps_columns_that_it_does_not_log(path: Path) -> None:
    logged(path, (0, {"a": 1.0, "old": 2.0}), (1, {"a": 3.0}))
    logged(path, (1, {"a": 4.0}), (2, {"a": 5.0}))
    assert path.read_text().splitlines() == ["step,a,old", "0,1.0,2.0", "1,4.0,", "2,5.0,"]


def test_opening_a_logger_changes_nothing(path: Path) -> None:
    logged(path, (0, {"a": 1.0}))
    before = path.read_text()
    MetricsCSV(path).finalize("success")
    assert path.read_text() == before


def test_a_resumed_run_that_starts_over_drops_all_rows(path: Path) -> None:
    logged(path, (0, {"a": 1.0}), (1, {"a": 2.0}))
    logged(path, (0, {"b": 9.0}))
    assert path.read_text().splitlines() == ["step,b", "0,9.0"]


# --- damaged files

WHOLE = ["step,a,b", "0,0.0,1.5", "1,1.0,1.5", "2,2.0,1.5", "3,3.0,1.5"]


@pytest.mark.parametrize(
    ("line", "damage", "left"),
    [
        (5, b"3,3.", [0, 1, 2]),
        (5, b"3,3.0,1.", [0, 1, 2]),
        (5, b"x", [0, 1, 2]),
        (5, bytes(40), [0, 1, 2]),
        (5, b"3,3.0,1.5,4.0\r\n", [0, 1, 2]),
        (5, b"3,\xff\xfe,1.5\r\n", [0, 1, 2]),
        (5, b'3,"' + 200_000 * b"x", [0, 1, 2]),
        (3, b"1,nonsense,1.5\r\n", [0, 2, 3]),
        (3, bytes(12) + b"\r\n", [0, 2, 3]),
        (3, b"\r\n", [0, 2, 3]),
        (1, b"nonsense\r\n", []),
        (1, b"", []),
    ],
)
def test_damaged_lines_are_left_out_and_said(
    line: int, damage: bytes, left: list[int], path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [text.encode() + b"\r\n" for text in WHOLE]
    lines[line - 1] = damage
    path.parent.mkdir()
    path.write_bytes(b"".join(lines))
    logged(path, (4, {"a": 4.0, "b": 1.5}))
    assert [row["step"] for row in rows(path)] == [*map(str, left), "4"]
    said = capsys.readouterr().err
    assert f"{path} is damaged in line {line if damage else 1}" in said
    assert said.count("\n") == 1
    assert path.with_name("metrics.csv.damaged").read_bytes() == b"".join(lines)


def test_a_resumed_run_says_that_its_earlier_rows_are_missing(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logged(path, (3, {"a": 3.0}))
    assert capsys.readouterr().err == f"{path} is missing: the run goes on without its rows before step 3\n"
    assert [row["step"] for row in rows(path)] == ["3"]


def test_a_run_that_begins_anew_says_nothing_of_old_rows(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.parent.mkdir()
    path.write_bytes(b"step,a\r\n0,torn")
    logged(path, (0, {"a": 1.0}))
    logged(path.with_name("other.csv"), (0, {"a": 1.0}))
    assert capsys.readouterr().err == ""


# --- W&B


class Started(SimpleNamespace):
    """What ``wandb.init`` would return."""

    def log(self, metrics: dict[str, float]) -> None:
        self.logged.append(metrics)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Started]:
    """The runs that were started, without W&B's process."""
    runs: list[Started] = []

    def init(**arguments: Any) -> Started:
        runs.append(Started(**arguments, resumed=False, logged=[]))
        return runs[-1]

    monkeypatch.setattr(wandb, "init", init)
    return runs


def test_the_remembered_identity_comes_back(tmp_path: Path, started: list[Started]) -> None:
    identity = str(wandb_logger(tmp_path, "lw-0000", {"a": 1}).version)
    assert len(identity) == 8
    (tmp_path / "wandb_id").write_text(identity)
    loggers = [wandb_logger(tmp_path, "lw-0000", {}) for _ in range(2)]
    assert [str(logger.version) for logger in loggers] == [identity] * 2
    other = tmp_path / "other"
    other.mkdir()
    assert str(wandb_logger(other, "lw-0001", {}).version) != identity
    assert "anonymous" not in vars(started[0])  # W&B warns of it


@pytest.mark.parametrize("resumed", [False, True])
def test_what_wandb_does_not_have_is_logged_again(resumed: bool, tmp_path: Path, started: list[Started]) -> None:
    logger = wandb_logger(tmp_path, "lw-0000", {})
    started[0].resumed = resumed
    logged(tmp_path / "m.csv", (0, {"a": 1.0}), (1, {"b": 2.0}))
    log_again(logger, MetricsCSV(tmp_path / "m.csv").resume(2))
    again = [{"a": 1.0, "trainer/global_step": 0}, {"b": 2.0, "trainer/global_step": 1}]
    assert started[0].logged == ([] if resumed else again)


@pytest.mark.parametrize(
    ("mode", "key", "chosen", "said"),
    [
        (None, "", "offline", ""),
        ("online", "", "offline", "WANDB_MODE is online, but there is no login (wandb login): W&B logs offline\n"),
        ("online", "x" * 40, None, ""),
        (None, "x" * 40, None, ""),
        ("offline", "x" * 40, None, ""),
        ("disabled", "", None, ""),
    ],
)
def test_without_a_login_wandb_is_offline_and_says_so_where_online_was_asked_for(
    mode: str | None,
    key: str,
    chosen: str | None,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in (("WANDB_MODE", mode), ("WANDB_API_KEY", key), ("NETRC", None)):
        monkeypatch.delenv(name, raising=False)
        if value:
            monkeypatch.setenv(name, value)
    assert wandb_mode() == chosen
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("mode", ["offline", "disabled", "dryrun"])
def test_no_network_unless_the_mode_allows_it(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert not logged_in()


def test_a_key_or_a_netrc_is_a_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    assert not logged_in()
    (tmp_path / ".netrc").write_text("machine example.org login a password b\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert not logged_in()
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert logged_in()
    (tmp_path / ".netrc").write_text("nonsense")
    assert not logged_in()
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert logged_in()
