"""Runs that are ended from outside or meet another run, in processes of their own."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import start, train, wait_for
from tiny_runs import ROOT, TINY_FEDERATION, environment, hear_interrupts
from wandb_file import history

from fedssl.__main__ import main
from fedssl.runs.run_lock import check_free

CONFIG = "lw_fedssl.yaml"
LONG = [*TINY_FEDERATION, "--model.rounds=400", "--trainer.logger=false"]
SHORT = [*TINY_FEDERATION, "--trainer.logger=false"]

pytestmark = pytest.mark.slow


def begin(folder: Path, *settings: str) -> subprocess.Popen[str]:
    """A run that has written its second checkpoint and has hundreds of rounds to go."""
    process = start(folder, CONFIG, [*LONG, *settings])
    wait_for(folder / "checkpoints" / "00001.ckpt", process)
    return process


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_ends_a_run_with_a_word_and_a_status(name: str, tmp_path: Path) -> None:
    folder, number = tmp_path / "run", signal.Signals[name]
    process = begin(folder)
    process.send_signal(number)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + number
    assert f"continue with --run_dir {folder} --ckpt_path auto" in said
    assert "Traceback" not in said
    assert "nanobind" not in said
    assert not (folder / "lock").exists()


def test_one_command_goes_through_every_state_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing yet; checkpoints, of which the newest is damaged; a configuration without a checkpoint."""
    folder = tmp_path / "run"
    command = ["fit", "-c", CONFIG, *SHORT, "--ckpt_path=auto", f"--run_dir={folder}"]
    results, newest = folder / "results.json", folder / "checkpoints" / "00003.ckpt"
    main(command)
    first = json.loads(results.read_text())["knn_top1"]
    results.unlink()
    newest.write_bytes(newest.read_bytes()[:1000])
    capsys.readouterr()
    main(command)
    said = capsys.readouterr().err
    assert f"auto passes over {newest}" in said
    assert "4/4 stage" in said
    assert "1/4 stage" not in said
    results.unlink()
    shutil.rmtree(folder / "checkpoints")
    main(command)
    assert "1/4 stage" in capsys.readouterr().err
    assert json.loads(results.read_text())["knn_top1"] == first


def test_a_second_run_in_a_living_one_is_refused_until_that_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = begin(folder)
    for resume in ([], ["--ckpt_path=last"], ["--ckpt_path=auto"]):
        with pytest.raises(SystemExit, match=f"error: {folder} is in use by process {process.pid} on "):
            main(["fit", "-c", CONFIG, *SHORT, *resume, f"--run_dir={folder}"])
    process.kill()
    process.wait()
    torn = folder / "metrics.csv"
    torn.write_bytes(torn.read_bytes() + b"7,1.0,")
    again = start(folder, CONFIG, [*LONG, "--ckpt_path=auto"])
    wait_for(folder / "metrics.csv.damaged", again)
    again.terminate()
    assert f"{torn} is damaged in line " in again.communicate()[0]


@pytest.mark.soak
def test_two_runs_that_start_together_have_two_folders(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), "fit", "-c", CONFIG, *SHORT]
    environ = environment() | {"PYTHONPATH": str(ROOT)}
    runs = [subprocess.Popen([*command, f"--seed_everything={seed}"], cwd=tmp_path, env=environ) for seed in (0, 1)]
    assert [run.wait() for run in runs] == [0, 0]
    found = sorted(tmp_path.glob("runs/lw_fedssl/*/results.json"))
    assert [path.parent.name for path in found] == ["0000", "0001"]
    assert {json.loads(path.read_text())["seed"] for path in found} == {0, 1}


@pytest.mark.soak
def test_the_end_of_max_time_has_a_status_and_results(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = ["fit", "-c", CONFIG, *LONG, "--trainer.max_time=00:00:00:02", f"--run_dir={folder}"]
    done = train(*settings, ok=False)
    assert done.returncode == 124
    assert "by trainer.max_time; a longer one goes on with --run_dir" in done.stderr
    assert 0 < json.loads((folder / "results.json").read_text())["rounds"] < 400


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_comparison_takes_its_run_with_it(number: int, tmp_path: Path) -> None:
    axes = {"scheme": {"layer-wise": f"-c {CONFIG} " + " ".join(f"'{each}'" for each in LONG)}}
    (tmp_path / "both.yaml").write_text(json.dumps({"axes": axes, "folder": str(tmp_path / "set")}))
    command = [sys.executable, str(ROOT / "train.py"), "compare", "-c", str(tmp_path / "both.yaml")]
    process = subprocess.Popen(command, text=True, cwd=ROOT, env=environment(), preexec_fn=hear_interrupts)
    folder = tmp_path / "set" / "layer_wise-seed0"
    wait_for(folder / "checkpoints" / "00001.ckpt", process)
    process.send_signal(number)
    assert process.wait(60) == (-number if number == signal.SIGKILL else 128 + number)
    for _ in range(600):
        if (folder / "lock").exists():
            time.sleep(0.05)
    check_free(folder)
    assert "stopped by SIGTERM after" in (folder / "log.txt").read_text()


@pytest.mark.soak
def test_the_last_wandb_file_of_a_killed_run_has_every_round(tmp_path: Path) -> None:
    folder, settings = tmp_path / "run", [*TINY_FEDERATION, "--model.rounds=12", "--ckpt_path=auto"]
    for checkpoint in ("00001.ckpt", "00006.ckpt"):
        process = start(folder, CONFIG, settings)
        wait_for(folder / "checkpoints" / checkpoint, process)
        process.kill()
        process.wait()
    process = start(folder, CONFIG, settings)
    assert "everything is in" in process.communicate()[0]
    *earlier, _ = sorted(folder.glob("wandb/offline-run-*"))
    assert earlier
    for path in earlier:
        shutil.rmtree(path)
    rounds = [row["round"] for row in history(folder) if "client/loss" in row]
    assert rounds == [float(number) for number in range(12)]
