"""A node's work between a message and its answer."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import TINY_FEDERATION

pytest.importorskip("flwr", reason="the extra fedssl[flower] is not installed")

from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedssl.cli.command import parse
from fedssl.data.clients import ClientData, ClientDatasets
from fedssl.flower.client_app import _share, app
from fedssl.flower.recipe import write_recipe
from fedssl.flower.records import Question, encode_question
from fedssl.flower.settings import read_node


class Counted(ClientData):
    num_clients, loaded = 1, 0

    def setup(self, stage: str) -> None:
        self.loaded += 1
        self.datasets = ClientDatasets([[]], None)  # type: ignore[list-item]


def test_a_node_loads_the_data_set_once() -> None:
    data, node = Counted(), read_node({"client-id": 0})
    assert _share(data, node) is _share(data, node)
    assert data.loaded == 1
    with pytest.raises(ValueError, match="client-id 1: the run has clients 0 to 0"):
        _share(data, read_node({"client-id": 1}))


RUN = "0123456789abcdef" * 2


def ask(recipe: str, run: str = RUN, **config: Any) -> dict[str, Any]:
    """What a node says about itself when a run asks."""
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    message = Message(encode_question(Question(run, recipe)), 1, "query")
    message.metadata.__dict__["_message_id"] = "question"
    node = {"client-id": 0, **{key.replace("_", "-"): str(value) for key, value in config.items()}}
    reply = app(message, Context(1, 1, node, RecordDict(), {}))
    return dict(json.loads(str(reply.content.config_records["note"]["json"])))


def test_the_operator_decides_and_the_recipe_cannot_widen_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["train.py"])
    recipe = write_recipe(parse(["-c", "lw_fedssl.yaml", *TINY_FEDERATION]))
    consent, content = tmp_path / "consent.yaml", sha256(recipe.encode()).hexdigest()
    node = {"consent": consent, "data_root": tmp_path, "cache_dir": tmp_path / "cache"}
    refusal = {"kind": "Refusal", "cause": "consent"}

    consent.write_text("recipes: []")
    assert ask(recipe, **node) == refusal
    kept = tmp_path / "cache" / "audit" / "recipes" / f"{RUN}.yaml"
    assert f"the recipe {content} is not approved: read {kept}, and to allow it, add" in caplog.text
    consent.write_text(f"recipes: [{content}]\nwithhold: [loss]")
    assert ask(recipe, **node)["withheld"] == ["loss"]
    assert ask(recipe.replace("rounds: 4", "rounds: 5"), **node) == refusal
    assert f"run {RUN} comes with another recipe" in caplog.text
    consent.write_text("at-most: {model.local_epochs: 0}")
    assert ask(recipe, **node) == refusal
    assert "model.local_epochs is 1" in caplog.text
    consent.write_text("epochs: 0")
    assert ask(recipe, **node)["cause"] == "error"
    assert ask(recipe, **{**node, "consent": tmp_path / "absent"})["cause"] == "error"
    # Whose folder would the run open?
    assert ask(recipe, consent=consent)["cause"] == "error"
