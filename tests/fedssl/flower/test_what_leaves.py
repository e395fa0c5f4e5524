"""Nothing leaves a node but what docs/deployment.md lists, and its audit file says the same."""

import json
import re
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_runs import ROOT

pytest.importorskip("flwr", reason="the extra fedssl[flower] is not installed")

from flwr.app import Context, Message

from fedssl.flower import client_app
from fedssl.flower.records import CAUSES

KINDS: dict[str, Callable[[Any], bool]] = {
    "whole number": lambda value: type(value) is int,
    "number": lambda value: type(value) is float,
    "name of the answer": lambda value: value in ("Result", "Lacking", "Refusal"),
    "word": lambda value: value in CAUSES,
    "words": lambda value: isinstance(value, list) and all(word in ("loss", "counts", "operations") for word in value),
    "hashes by part": lambda value: all(re.fullmatch(r"[\w.]+ [0-9a-f]{32}", f"{k} {v}") for k, v in value.items()),
}


def listed() -> dict[str, str]:
    """Kind of every figure in the table of the documentation."""
    section = (ROOT / "docs/deployment.md").read_text().partition("### What leaves a node")[2].partition("\n#")[0]
    rows = re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|", section, re.MULTILINE)
    return {name: kind for names, kind in rows for name in re.findall(r"`(.+?)`", names)}


def draw(folder: Path) -> str:
    """Labelled images: a class has its folder."""
    for kind in ("melanoma", "naevus"):
        (folder / kind).mkdir(parents=True)
        for i in range(5):
            noise = np.random.default_rng(i).integers(0, 255, (20, 20), np.uint8)
            Image.fromarray(noise).save(folder / kind / f"{i}.png")
    return str(folder)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_only_what_is_listed_leaves(
    grid: Any, flower: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of nodes that train, withhold, fail to begin, have little memory, lose their cache, and lose their images."""
    monkeypatch.setattr("fedssl.flower.server_app.FlowerCLI.after_fit", lambda _: None)
    withhold = tmp_path / "consent.yaml"
    withhold.write_text("withhold: [loss, counts, operations]")
    absent = {"images": str(tmp_path / "secret" / "absent")}
    more: list[dict[str, Any]] = [{}, {"consent": str(withhold)}, absent, {"memory": "1KiB"}, {}, {}]
    grid.contexts.clear()
    for client, own in enumerate(more):
        folder, audit = tmp_path / "secret" / str(client), tmp_path / "audit" / str(client)
        grid.add({"client-id": client, "images": draw(folder), "audit": str(audit), **own})

    def forget(message: Message, context: Context) -> Message:
        if message.metadata.group_id == "1":
            for cache in (tmp_path / "cache" / "fedssl").glob("*/4"):
                shutil.rmtree(cache)
        return client_app.app(message, context)

    def lose(message: Message, context: Context) -> Message:
        if message.metadata.group_id == "1":
            shutil.rmtree(tmp_path / "secret" / "5")
        return client_app.app(message, context)

    grid.answers |= {104: forget, 105: lose}
    data = ["--data=fedssl.flower.own_images.OwnImages", "--data.clients=6", "--data.image_size=16"]
    flower(grid, *data, "--data.channels=1", "--model.rounds=2", join_timeout=0.2)

    table, seen, causes = listed(), set(), set()
    for _, message in grid.left:
        assert not message.has_error()
        assert set(message.content) <= {"note", "parts"}
        note = json.loads(message.content.config_records["note"]["json"])
        assert set(message.content.config_records["note"]) == {"json"}
        for figure, value in note.items():
            assert KINDS[table[figure]](value), (figure, value)
        seen |= {*note, *message.content} - {"note"}
        causes.add(note.get("cause"))
    assert seen == set(table)
    assert causes == {None, "error", "memory"}
    for secret in (str(tmp_path), "secret", "melanoma", "naevus", ".png", "Error"):
        assert secret.encode() not in grid.left_bytes
    _assert_audited(grid, tmp_path)


def _assert_audited(grid: Any, folder: Path) -> None:
    """Each node wrote down its messages, in order, with the hashes of what left."""
    for client in range(6):
        left = [message.content for node, message in grid.left if node == 100 + client]
        lines = [json.loads(line) for path in (folder / "audit" / str(client)).glob("*.jsonl") for line in path.open()]
        assert [line["sent"] for line in lines] == [json.loads(each.config_records["note"]["json"]) for each in left]
        for line, content in zip(lines, left, strict=True):
            arrays = [array for record in content.array_records.values() for array in record.values()]
            said = [text.rpartition(" ")[2] for text in line["arrays"].values()]
            assert said == [sha256(array.data).hexdigest() for array in arrays]
        recipe = next((folder / "audit" / str(client) / "recipes").iterdir())
        assert {line["recipe"] for line in lines} == {sha256(recipe.read_bytes()).hexdigest()}
    failed = next((folder / "audit" / "5").glob("*.jsonl")).read_text()
    assert "FileNotFoundError" in failed
    assert str(folder) in failed
