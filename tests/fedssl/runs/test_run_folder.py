"""Where runs write."""

from pathlib import Path

import pytest
import torch

from fedssl.runs.run_folder import (
    choose_run_folder,
    find_checkpoint,
    folder_of_checkpoint,
    is_finished,
    latest_run_folder,
    new_run_folder,
)
from fedssl.training.checkpoints import origin

WHOLE = {"fedssl": origin(), "state_dict": {}}
"""The least that a checkpoint has."""


def make_run(folder: Path, checkpoint: bool = True, config: bool = True) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    if config:
        (folder / "config.yaml").write_text("x: 1")
    if checkpoint:
        (folder / "checkpoints" / "00001.ckpt").write_bytes(b"")
    return folder


def test_runs_are_numbered(tmp_path: Path) -> None:
    parent = tmp_path / "runs" / "lw"
    assert new_run_folder(parent) == parent / "0000"
    assert not parent.exists()
    for name in ("0000", "0007", "0003", "12_notes", "tmp"):
        (parent / name).mkdir(parents=True)
    assert new_run_folder(parent) == parent / "0008"
    (parent / "12345").mkdir()
    assert new_run_folder(parent) == parent / "12346"


def test_a_new_run_gets_a_free_folder(tmp_path: Path) -> None:
    make_run(tmp_path / "0000")
    assert choose_run_folder(None, None, tmp_path) == tmp_path / "0001"


def test_last_is_the_highest_number_with_a_checkpoint(tmp_path: Path) -> None:
    for name in ("0000", "0002", "0001"):
        make_run(tmp_path / name)
    make_run(tmp_path / "0003", checkpoint=False)
    assert latest_run_folder(tmp_path) == tmp_path / "0002"
    assert choose_run_folder(None, "last", tmp_path) == tmp_path / "0002"


def test_last_without_a_run(tmp_path: Path) -> None:
    assert latest_run_folder(tmp_path / "nothing") is None
    with pytest.raises(FileNotFoundError, match=f"--ckpt_path last: no run under {tmp_path} has a checkpoint"):
        choose_run_folder(None, "last", tmp_path)


def test_a_folder_that_holds_a_run_is_refused_unless_it_is_resumed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "mine")
    with pytest.raises(ValueError, match=f"{run} already holds a run: resume it with --ckpt_path last, or choose"):
        choose_run_folder(str(run), None, tmp_path)
    assert choose_run_folder(str(run), "last", tmp_path) == run
    assert choose_run_folder(str(tmp_path / "free"), None, tmp_path) == tmp_path / "free"
    empty = make_run(tmp_path / "empty", checkpoint=False, config=False)
    assert choose_run_folder(str(empty), None, tmp_path) == empty


def test_a_checkpoint_is_resumed_in_its_own_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "0004")
    checkpoint = run / "checkpoints" / "00001.ckpt"
    assert folder_of_checkpoint(checkpoint) == run
    assert choose_run_folder(None, str(checkpoint), tmp_path) == run
    elsewhere = tmp_path / "copied.ckpt"
    elsewhere.write_bytes(b"")
    assert folder_of_checkpoint(elsewhere) is None
    assert choose_run_folder(None, str(elsewhere), tmp_path) == tmp_path / "0005"
    assert choose_run_folder(str(tmp_path / "mine"), str(checkpoint), tmp_path) == tmp_path / "mine"


def test_checkpoints_without_a_configuration_are_no_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "0004", config=False)
    assert folder_of_checkpoint(folder / "checkpoints" / "00001.ckpt") is None


def test_find_checkpoint(tmp_path: Path) -> None:
    run = make_run(tmp_path / "0000")
    checkpoint = run / "checkpoints" / "00001.ckpt"
    with pytest.raises(ValueError, match=r"00001\.ckpt"):
        find_checkpoint("last", run)
    torch.save(WHOLE, checkpoint)
    assert find_checkpoint(None, run) is None
    assert find_checkpoint("last", run) == checkpoint
    assert find_checkpoint(str(checkpoint), tmp_path / "other") == checkpoint
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint nothing\.ckpt"):
        find_checkpoint("nothing.ckpt", run)
    with pytest.raises(FileNotFoundError, match=r"--ckpt_path last: .*0001/checkpoints has no checkpoint; .* auto"):
        find_checkpoint("last", make_run(tmp_path / "0001", checkpoint=False))


def test_auto_begins_what_has_no_checkpoint(tmp_path: Path) -> None:
    for folder in (tmp_path / "nothing", make_run(tmp_path / "killed", checkpoint=False)):
        assert choose_run_folder(str(folder), "auto", tmp_path) == folder
        assert find_checkpoint("auto", folder) is None


def test_auto_resumes_the_newest_checkpoint_that_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", checkpoint=False)
    paths = [run / "checkpoints" / f"{number:05d}.ckpt" for number in range(3)]
    for path in paths:
        torch.save(WHOLE, path)
    assert find_checkpoint("auto", run) == paths[2]
    paths[2].write_bytes(b"torn")
    assert find_checkpoint("auto", run) == paths[1]
    assert f"--ckpt_path auto passes over {paths[2]}: " in capsys.readouterr().err
    for path in paths:
        path.write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"auto: no checkpoint in .*run/checkpoints can be read"):
        find_checkpoint("auto", run)


def test_auto_without_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--ckpt_path auto needs --run_dir: "):
        choose_run_folder(None, "auto", tmp_path)


def test_a_run_that_was_killed_before_its_first_checkpoint_is_no_dead_end(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", checkpoint=False)
    with pytest.raises(ValueError, match="run already holds a run: --ckpt_path auto begins it anew"):
        choose_run_folder(str(run), None, tmp_path)


@pytest.mark.parametrize(
    ("text", "finished"),
    [('{"rounds": 4}', True), ('{"finished": false, "rounds_done": 2, "rounds_planned": 4}', False)],
)
def test_a_run_is_finished_with_its_results(text: str, finished: bool, tmp_path: Path) -> None:
    assert not is_finished(tmp_path)
    (tmp_path / "results.json").write_text(text)
    assert is_finished(tmp_path) is finished


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_damaged_results_are_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=r"results\.json is damaged"):
        is_finished(tmp_path)
