"""The metrics file and the identity of W&B runs."""

import csv
from pathlib import Path

import pytest

from fedssl.tracking import MetricsCSV, logged_in, wandb_logger


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


# --- W&B


def test_the_remembered_identity_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    first = wandb_logger(tmp_path, "lw-0000", {"a": 1})
    identity = str(first.version)
    assert len(identity) == 8
    (tmp_path / "wandb_id").write_text(identity)
    loggers = [wandb_logger(tmp_path, "lw-0000", {}) for _ in range(2)]
    assert [str(logger.version) for logger in loggers] == [identity] * 2
    other = tmp_path / "other"
    other.mkdir()
    assert str(wandb_logger(other, "lw-0001", {}).version) != identity


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
