"""What ``train.py node check`` finds before a run does."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("flwr", reason="the extra fedssl[flower] is not installed")

from fedssl.flower.check import QUIET, check_node
from fedssl.flower.consent import content_hash


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node's file, and all that it needs."""
    (tmp_path / "images").mkdir()
    for i in range(3):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / "images" / f"{i}.png")
    for name, value in (QUIET | {"FLWR_HOME": str(tmp_path / "flwr")}).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "consent.yaml").write_text("recipes: []\nwithhold: [loss]")
    keys = {"images": "images", "cache-dir": "cache", "consent": "consent.yaml"}
    lines = [f'{key} = "{tmp_path / name}"\n' for key, name in keys.items()]
    (tmp_path / "node.toml").write_text(f'client-id = 2\nmemory = "1MiB"\n{"".join(lines)}')
    return tmp_path / "node.toml"


def test_it_prints_what_the_node_would_send(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_node(["check", str(node)]) == 0
    told = capsys.readouterr().out
    assert f"images       3 in {node.parent}/images" in told
    assert 'would send   {"client_id": 2, "held": {}, "memory_bytes": 1048576, "num_images": 3' in told
    assert "and with trained layers: counts, operations" in told
    assert "not pinned: the app that the SuperLink sends runs here" in told


def test_each_problem_is_one_line_and_the_others_are_still_looked_at(
    node: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key, recipe = node.parent / "key", node.parent / "recipe.yaml"
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(key)], check=True)
    key.chmod(0o644)
    recipe.write_text("model: x")
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    for image in (node.parent / "images").iterdir():
        image.unlink()
    options = ["--auth-supernode-private-key", str(key), "--superlink=127.0.0.1:1", "--recipe", str(recipe)]
    assert check_node(["check", str(node), *options]) == 1
    problems = [line for line in capsys.readouterr().out.splitlines() if "PROBLEM" in line]
    assert [line.split()[0] for line in problems] == ["images", "environment", "key", "superlink", "recipe"]
    assert f"others can read {key}: chmod 600" in problems[2]
    assert f"the recipe {content_hash('model: x')} is not approved: read {recipe}" in problems[4]
