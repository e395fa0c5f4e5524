"""A deployment of real processes on the loopback interface; minutes, not seconds."""

import csv
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import torch
from flower_deployment import Loopback, make_certificates
from tiny_runs import ROOT, TINY_FEDERATION

from fedssl.__main__ import main

pytestmark = [pytest.mark.slow]
Start = Callable[..., Loopback]
CALIBRATED = (
    "--model.rounds=2",
    "--data.clients=2",
    "--model.calibration.epochs=1",
    "--data.auxiliary_fraction=0.2",
    "--model.alignment=MoonAlignment",
)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts SuperLinks; all processes end with the test."""
    pytest.importorskip("flwr", reason="the extra fedssl[flower] is not installed")
    links: list[Loopback] = []

    def make(tls: bool = False, simulation: bool = False) -> Loopback:
        links.append(Loopback(tmp_path / f"flower{len(links)}", tls, simulation))
        links[-1].start_link()
        return links[-1]

    yield make
    for link in links:
        link.close()


def final_state(folder: Path) -> dict[str, Any]:
    return torch.load(max((folder / "checkpoints").glob("*.ckpt")), weights_only=True)


def column(folder: Path, name: str) -> list[int]:
    rows = csv.DictReader((folder / "metrics.csv").open())
    return [int(float(row[name])) for row in rows if row.get(name)]


def assert_equals_one_process(folder: Path, own: Path, settings: tuple[str, ...]) -> None:
    """The run in one process gives the same weights."""
    main(["fit", "-c", "lw_fedssl.yaml", *TINY_FEDERATION, "--trainer.logger=false", *settings, f"--run_dir={own}"])
    first, second = final_state(own)["state_dict"], final_state(folder)["state_dict"]
    assert [key for key, tensor in first.items() if not torch.equal(tensor, second[key])] == []


@pytest.mark.soak
def test_tls_and_keys_train_the_same_model_and_keep_strangers_out(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    link, folder = start(tls=True), tmp_path / "run"
    (tmp_path / "node.toml").write_text("client-id = 0\n")
    reach = [f"--superlink=localhost:{link.port}", f"--root-certificates={link.certificates}/ca.crt"]
    with pytest.raises(SystemExit):
        main(["node", "check", str(tmp_path / "node.toml"), *reach])
    assert "answers with TLSv1.3; its certificate holds until " in capsys.readouterr().out
    for client in range(2):
        link.start_node(f"node{client}", f"client-id={client}", link.register(f"key{client}"))
    link.start_node("unregistered", "client-id=0", link.new_key("stranger"))
    link.start_node("keyless", "client-id=0")
    link.start_node("misled", "client-id=0", link.new_key("other"), make_certificates(tmp_path / "wrong") / "ca.crt")
    for name in ("unregistered", "keyless", "misled"):
        link.until(lambda name=name: link.processes[name].poll() is not None, f"the refusal of {name}")
        assert link.processes[name].returncode != 0
    run = link.run(*CALIBRATED, run_dir=str(folder))
    assert link.finish(run) == "finished:completed", link.log(run)
    assert column(folder, "client/participants") == [2, 2]
    assert json.loads((folder / "results.json").read_text())["rounds"] == 2
    assert (folder / "encoder" / "model.safetensors").exists()
    monkeypatch.setattr("sys.argv", ["train.py"])
    assert_equals_one_process(folder, tmp_path / "own", CALIBRATED)


@pytest.mark.soak
def test_a_killed_server_resumes_with_exact_weights(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, folder = start(), tmp_path / "run"
    settings = (*CALIBRATED, "--model.rounds=3", "--model.scheme.rounds_per_stage=[2,1]")
    for client in range(2):
        link.start_node(f"node{client}", f"client-id={client}")
    link.run(*settings, run_dir=str(folder))
    link.until((folder / "checkpoints" / "00000.ckpt").exists, "a round")
    link.kill("link")
    assert not (folder / "results.json").exists()
    link.start_link()
    run = link.run(*settings, run_dir=str(folder), resume="last")
    assert link.finish(run) == "finished:completed", link.log(run)
    assert column(folder, "client/participants") == [2, 2, 2]
    monkeypatch.setattr("sys.argv", ["train.py"])
    assert_equals_one_process(folder, tmp_path / "own", settings)


@pytest.mark.soak
def test_nodes_that_die_come_back_and_join_late(start: Start, tmp_path: Path) -> None:
    link, folder = start(), tmp_path / "run"
    link.start_node("node0", "client-id=0")
    link.start_node("node1", "client-id=1")
    settings = ("--model.rounds=20", "--model.scheme.blocks_per_stage=2", "--model.local_epochs=4")
    run = link.run(*settings, run_dir=str(folder), join_timeout=25.0, round_timeout=60.0)
    link.until((folder / "checkpoints" / "00000.ckpt").exists, "a round")
    link.kill("node1")
    link.start_node("node2", "client-id=2")
    link.until(lambda: column(folder, "client/participants")[-1] < 3 and len(column(folder, "round")) > 2, "rounds")
    link.start_node("node1 again", "client-id=1")
    link.until(lambda: column(folder, "client/participants")[-1] == 3, "all three clients", 900)
    told = link.log(run)
    assert "the run starts with 2 of 3 clients: [0, 1]" in told
    assert "round 1 ends without client 1" in told or "update of client 1 is dropped" in told
    assert link.status(run).startswith("running")


@pytest.mark.soak
def test_liars_and_small_devices_are_dropped_counted_and_named(start: Start, tmp_path: Path) -> None:
    link, folder = start(), tmp_path / "run"
    link.start_node("honest", "client-id=0")
    link.start_node("small", 'client-id=1 memory="1KiB"')
    for client, lie in enumerate(("not_a_number", "wrong_shape", "malformed"), 2):
        link.start_node(lie, f"client-id={client}", lie=lie)
    run = link.run("--model.rounds=1", "--model.scheme.blocks_per_stage=2", "--data.clients=5", run_dir=str(folder))
    assert link.finish(run) == "finished:completed", link.log(run)
    counts = [column(folder, f"client/{kind}") for kind in ("participants", "declined", "failed")]
    assert counts == [[1], [1], [4]]
    told = link.log(run)
    for client, reason in enumerate(("declines the stage", "is not finite", "has shape (1,)", "malformed"), 1):
        assert any(f"client {client}" in line and reason in line for line in told.splitlines()), told


@pytest.mark.soak
def test_a_pinned_node_runs_no_code_that_was_sent(start: Start, tmp_path: Path) -> None:
    app, folder = tmp_path / "app", tmp_path / "run"
    app.mkdir()
    project = (ROOT / "pyproject.toml").read_text().replace("fedssl.flower.client_app:app", "sent:app")
    (app / "pyproject.toml").write_text(project.replace('license-files = ["LICENSE"]\n', "").replace("README.md", ""))
    (app / "sent.py").write_text(
        "import os\nfrom pathlib import Path\nfrom fedssl.flower import client_app\napp = client_app.app\n"
        f"Path({str(tmp_path)!r}, 'ran on ' + Path(os.environ['PATH'].split(':')[0]).name).touch()\n"
    )
    link = start()
    snippet = re.findall(r'```sh title="pin.sh"\n(.*?)```', (ROOT / "docs/deployment.md").read_text(), re.DOTALL)[0]
    subprocess.run(["bash", "-ec", snippet], cwd=tmp_path, env=link.environment(), check=True)
    link.start_node("pinned", "client-id=0", commands=tmp_path / "pinned")
    link.start_node("ordinary", "client-id=1")
    settings = ("--model.rounds=1", "--model.scheme=EndToEnd", "--data.clients=2")
    link.run(*settings, app=app, run_dir=str(folder))

    def trained() -> set[int]:
        lines = [json.loads(line) for path in link.folder.glob("cache/audit/*.jsonl") for line in path.open()]
        return {line["client"] for line in lines if line["sent"].get("kind") == "Result"}

    link.until(lambda: trained() == {0, 1}, "both results", 400)
    assert [path.name for path in tmp_path.glob("ran on *")] == ["ran on bin"]


@pytest.mark.soak
def test_trusted_entities_refuse_runs_that_are_not_from_flowers_hub(start: Start, tmp_path: Path) -> None:
    link = start()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")], check=True)
    (tmp_path / "trusted.yaml").write_text(f"fpk_1: '{(tmp_path / 'key.pub').read_text().strip()}'\n")
    link.start_node("wary", "client-id=0", options=["--trusted-entities", str(tmp_path / "trusted.yaml")])
    link.run("--model.rounds=1", "--model.scheme=EndToEnd", "--data.clients=1", run_dir=str(tmp_path / "run"))
    refused = "App verification is not supported by the connected SuperLink"
    link.until(lambda: refused in (link.folder / "wary.log").read_text(), "the refusal")


@pytest.mark.skipif(which("nginx") is None, reason="nginx is not installed")
@pytest.mark.soak
def test_the_documented_proxy_lets_nodes_train_and_nobody_submit(start: Start, tmp_path: Path) -> None:
    link, folder = start(tls=True), tmp_path / "run"
    port = link.start_proxy(re.findall(r"```nginx\n(.*?)```", (ROOT / "docs/deployment.md").read_text(), re.DOTALL)[0])
    link.start_node("node", "client-id=0", link.register("key"), port=port)
    settings = ("--model.rounds=1", "--model.scheme.blocks_per_stage=2", "--data.clients=1", "--trainer.logger=true")
    run = link.run(*settings, run_dir=str(folder))
    assert link.finish(run) == "finished:completed", link.log(run)
    assert column(folder, "client/participants") == [1]
    assert list(folder.glob("wandb/offline-run-*"))
    asked = (link.folder / "nginx" / "access.log").read_text()
    assert '"POST /v1/fleet/' in asked
    link.connect(port)
    assert not link.flwr("list", "loop")["success"]
    assert re.findall(
        r'"POST /v1/(control/\S+|fleet/\S+) HTTP/1.1" 403', (link.folder / "nginx/access.log").read_text()
    ) == ["control/list-runs"]


def test_simulation_trains_the_same_model(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link, folder = start(simulation=True), tmp_path / "run"
    settings = (*CALIBRATED, "--data.clients=3")
    run = link.run(*settings, run_dir=str(folder))
    assert link.finish(run) == "finished:completed", link.log(run)
    assert column(folder, "client/participants") == [3, 3]
    monkeypatch.setattr("sys.argv", ["train.py"])
    assert_equals_one_process(folder, tmp_path / "own", settings)
