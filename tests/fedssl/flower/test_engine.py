"""A round over Flower when nodes are slow, absent, malicious, new or forgetful."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("flwr", reason="the extra fedssl[flower] is not installed")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from fedssl.flower import client_app
from fedssl.flower.engine import FlowerEngine
from fedssl.flower.settings import RoundSettings
from fedssl.server.participation import Participation

Flower = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedssl.flower.server_app.FlowerCLI.after_fit", lambda _: None)


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").open()))


def column(folder: Path, name: str) -> list[int]:
    return [int(float(row[name])) for row in rows(folder) if row[name]]


def final_state(folder: Path) -> dict[str, Any]:
    return torch.load(max((folder / "checkpoints").glob("*.ckpt")), weights_only=True)


def equal(a: Path, b: Path) -> bool:
    first, second = (final_state(folder)["state_dict"] for folder in (a, b))
    return all(torch.equal(first[key], second[key]) for key in first)


def spoil(change: Callable[[RecordDict], RecordDict]) -> Callable[[Message, Context], Message]:
    """A client that trains as it should and then changes its answer."""

    def answer(message: Message, context: Context) -> Message:
        reply = client_app.app(message, context)
        if message.metadata.message_type == "train":
            reply = Message(change(reply.content), reply_to=message)
        return reply

    return answer


def not_a_number(content: RecordDict) -> RecordDict:
    record = content.array_records["parts"]
    name = next(key for key, array in record.items() if array.dtype == "float32")
    tensor = torch.from_numpy(record[name].numpy().copy())
    record[name] = Array((tensor * float("nan")).numpy())
    return content


def wrong_shape(content: RecordDict) -> RecordDict:
    record = content.array_records["parts"]
    name = next(iter(record))
    record[name] = Array(torch.zeros(3, 1).numpy())
    return content


def wrong_type(content: RecordDict) -> RecordDict:
    record = content.array_records["parts"]
    name = next(key for key, array in record.items() if array.dtype == "float32")
    record[name] = Array(record[name].numpy().astype("float64"))
    return content


def no_layer(content: RecordDict) -> RecordDict:
    return RecordDict({**content, "parts": ArrayRecord()})


def no_note(content: RecordDict) -> RecordDict:
    return RecordDict({"parts": content.array_records["parts"]})


def a_pickle(content: RecordDict) -> RecordDict:
    record = content.array_records["parts"]
    record[next(iter(record))] = Array(dtype="object", shape=(1,), stype="numpy.ndarray", data=b"\x80\x04K\x01.")
    return content


def heavy(content: RecordDict) -> RecordDict:
    note = json.loads(content.config_records["note"]["json"])
    return RecordDict({**content, "note": ConfigRecord({"json": json.dumps(note | {"num_images": -5})})})


BAD = {
    not_a_number: "is not finite",
    wrong_shape: "has shape (3, 1)",
    wrong_type: "has type torch.float64",
    no_layer: "other tensors than its task",
    no_note: "malformed: KeyError",
    a_pickle: "malformed: ValueError",
    heavy: "num_images is -5",
}


def test_bad_answers_are_dropped_counted_and_named(grid: Any, flower: Flower, caplog: pytest.LogCaptureFixture) -> None:
    """Another one in each round."""
    answers = [spoil(change) for change in BAD]
    grid.answers[102] = lambda message, context: answers[int(message.metadata.group_id or 0)](message, context)
    folder = flower(grid, f"--model.rounds={len(BAD)}", "--model.scheme.blocks_per_stage=2")
    assert column(folder, "client/failed") == [1] * len(BAD)
    assert column(folder, "client/participants") == [2] * len(BAD)
    warnings = [record.getMessage() for record in caplog.records if "client 2 is dropped" in record.getMessage()]
    assert all(reason in warning for reason, warning in zip(BAD.values(), warnings, strict=True))
    assert final_state(folder)["server"]["failed_updates"] == len(BAD)


def test_a_client_that_raises_is_named(grid: Any, flower: Flower, caplog: pytest.LogCaptureFixture) -> None:
    grid.contexts[101].node_config["memory"] = "lots"
    with pytest.raises(Exception, match=r"2 of 3 clients are connected; 3 nodes are online, .*; missing: 1"):
        flower(grid, min_clients=3, join_timeout=0.2)
    assert "node 101 does not take part: it failed; the node's log and audit file say why" in caplog.text
    assert "client None: 'lots' is not a size" in caplog.text


def test_a_run_that_divides_a_data_set_opens_no_folder_of_a_nodes_own(
    grid: Any, flower: Flower, caplog: pytest.LogCaptureFixture
) -> None:
    grid.contexts[101].node_config["images"] = "/nowhere"
    folder = flower(grid, "--model.rounds=1", "--model.scheme=EndToEnd", join_timeout=0.2)
    assert column(folder, "client/participants") == [2]
    assert "node 101 does not take part: its operator does not allow that" in caplog.text
    assert "images of its own, and the run does not ask for them: it divides digits" in caplog.text


def test_a_silent_client_is_late_and_the_round_goes_on(
    grid: Any, flower: Flower, caplog: pytest.LogCaptureFixture
) -> None:
    asked = client_app.app

    def vanish(message: Message, context: Context) -> Message:
        grid.silent.add(100)
        return asked(message, context)

    grid.answers[100] = vanish
    folder = flower(grid, "--model.rounds=2", round_timeout=0.3)
    assert column(folder, "client/late") == [1, 1]
    assert column(folder, "client/participants") == [2, 2]
    assert "round 0 ends without client 0: no answer after 0." in caplog.text


def test_the_server_says_whom_it_waits_for(
    grid: Any, flower: Flower, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedssl.flower.engine.TOLD_SECONDS", 0.1)
    asked = client_app.app
    grid.hidden.add(102)
    grid.answers[100] = lambda message, context: grid.silent.add(100) or asked(message, context)
    flower(grid, "--model.rounds=1", "--model.scheme=EndToEnd", round_timeout=0.4, join_timeout=0.3)
    assert "waiting for clients: 2 of 3 clients are connected; 2 nodes are online" in caplog.text
    assert "round 0: 1 of 2 clients have answered after 0 s, waiting for 0" in caplog.text


def test_who_withholds_what_a_run_counts_on_takes_no_part(
    grid: Any, flower: Flower, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for client, figures in ((101, "loss"), (102, "counts, operations")):
        path = tmp_path / f"{client}.yaml"
        path.write_text(f"withhold: [{figures}]")
        grid.contexts[client].node_config |= {"consent": str(path), "data-root": str(tmp_path)}
    settings = [
        "--model.selector=FedHybridSelector",
        "--model.selector.full_memory=1GiB",
        "--model.aggregation=FedNova",
    ]
    folder = flower(grid, "--model.rounds=1", "--model.scheme=EndToEnd", *settings, join_timeout=0.2)
    assert column(folder, "client/participants") == [1]
    assert "client 1 withholds its loss, which FedHybridSelector needs" in caplog.text
    assert "client 2 withholds its counts, which FedNova needs" in caplog.text


def test_a_round_can_end_with_enough_answers(grid: Any, flower: Flower) -> None:
    asked = client_app.app
    grid.answers[102] = lambda message, context: grid.silent.add(102) or asked(message, context)
    folder = flower(grid, "--model.rounds=2", enough_replies=2)
    assert column(folder, "client/late") == [1, 1]


def test_too_few_answers_end_the_run_and_it_can_be_resumed(grid: Any, flower: Flower) -> None:
    whole = flower(grid, "--model.rounds=2", folder="whole")
    asked = client_app.app
    spoilt = spoil(not_a_number)
    grid.answers[101] = lambda message, context: (spoilt if message.metadata.group_id == "1" else asked)(
        message, context
    )
    with pytest.raises(RuntimeError, match=r"2 usable update; 3 are needed; client 1: .* is not finite"):
        flower(grid, "--model.rounds=2", min_replies=3, folder="stopped")
    del grid.answers[101]
    assert equal(whole, flower(grid, "--model.rounds=2", min_replies=3, folder="stopped", resume="last"))


def test_a_client_with_too_little_memory_declines(grid: Any, flower: Flower, caplog: pytest.LogCaptureFixture) -> None:
    grid.contexts[101].node_config["memory"] = "1KiB"
    grid.contexts[102].node_config["memory"] = "64GiB"
    folder = flower(grid, "--model.rounds=2")
    assert column(folder, "client/declined") == [1, 1]
    assert column(folder, "client/participants") == [2, 2]
    assert "update of client 1 is dropped: declines the stage: it needs more memory" in caplog.text
    assert "client 1 declines stage 0: it needs" in caplog.text
    assert "has 1 KiB" in caplog.text


def test_a_late_joiner_takes_part_from_the_next_round(grid: Any, flower: Flower) -> None:
    grid.hidden.add(102)
    asked = client_app.app

    def appear(message: Message, context: Context) -> Message:
        if message.metadata.group_id == "1":
            grid.hidden.discard(102)
        return asked(message, context)

    grid.answers[100] = appear
    folder = flower(grid, join_timeout=0.2)
    assert column(folder, "client/participants") == [2, 2, 3, 3]
    assert column(folder, "client/unavailable") == [1, 1, 0, 0]


def test_a_node_that_comes_back_is_the_same_client(grid: Any, flower: Flower) -> None:
    asked = client_app.app

    def move(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "train" and message.metadata.group_id == "1":
            grid.hidden.add(102)
            grid.add({"client-id": 2})
        return asked(message, context)

    whole = flower(grid, folder="whole")
    grid.answers[100] = move
    moved = flower(grid, folder="moved", join_timeout=5.0, min_clients=3)
    assert equal(whole, moved)
    assert column(whole, "cost/down_bytes") == column(moved, "cost/down_bytes")


def test_a_client_that_lost_its_cache_gets_the_frozen_layers_again(grid: Any, flower: Flower, tmp_path: Path) -> None:
    asked = client_app.app

    def forget(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "train" and message.metadata.group_id == "3":
            for folder in (tmp_path / "cache" / "fedssl").glob("*/2"):
                shutil.rmtree(folder)
        return asked(message, context)

    whole = flower(grid, folder="whole")
    grid.answers[102] = forget
    lost = flower(grid, folder="lost")
    assert equal(whole, lost)
    assert sum(column(lost, "client/resent")) >= 1
    assert column(lost, "cost/down_bytes")[-1] > column(whole, "cost/down_bytes")[-1]


def test_two_nodes_cannot_be_the_same_client(grid: Any, flower: Flower, caplog: pytest.LogCaptureFixture) -> None:
    grid.add({"client-id": 1})
    grid.add({"client-id": 9})
    grid.add({})
    folder = flower(grid, "--model.rounds=2")
    assert column(folder, "client/participants") == [3, 3]
    assert "node 103 does not take part: client-id 1 is taken by node 101" in caplog.text
    assert "node 104 does not take part: client-id 9: the run has clients 0 to 2" in caplog.text
    assert "must set client-id" in caplog.text


def test_without_clients_the_run_says_so(grid: Any, flower: Flower) -> None:
    grid.hidden.update(grid.contexts)
    with pytest.raises(RuntimeError, match=r"after 0\.1 s, min-clients is 2: 0 of 3 clients are connected"):
        flower(grid, min_clients=2, join_timeout=0.1)


def test_framing_is_metered_and_small(grid: Any, flower: Flower) -> None:
    folder = flower(grid)
    tensors = sum(column(folder, "cost/down_bytes"))
    metered = sum(column(folder, "cost/wire_down_bytes"))
    real = grid.wire_bytes["train"][0]
    messages = [message for message in grid.sent if message.metadata.message_type == "train"]
    arrays = sum(len(record) for message in messages for record in message.content.array_records.values())
    assert tensors < metered < real
    assert metered - tensors < 256 * arrays + 6000 * len(messages)
    assert real - tensors < 700 * arrays + 6500 * len(messages)


def test_clients_never_learn_the_noise_of_a_private_run(grid: Any, flower: Flower) -> None:
    pytest.importorskip("dp_accounting", reason="the extra fedssl[privacy] is not installed")
    private = ["--model.aggregation=PrivateMean", "--model.aggregation.clip=1.0"]
    private += ["--model.aggregation.noise_multiplier=5.0"]
    folder = flower(grid, "--model.rounds=2", *private)
    notes = [message.content.config_records["note"]["json"] for message in grid.sent]
    assert len(notes) == 9
    key = final_state(folder)["server"]["aggregation"]["key"]
    assert not any(key in note or "PrivateMean" in note for note in notes)
    spent = [float(row["privacy/epsilon"]) for row in rows(folder) if row["privacy/epsilon"]]
    assert 0 < spent[0] < spent[1]


def test_a_hello_that_cannot_be_read_leaves_its_node_out(
    grid: Any, flower: Flower, caplog: pytest.LogCaptureFixture
) -> None:
    def recurse(message: Message, context: Context) -> Message:
        return Message(RecordDict({"note": ConfigRecord({"json": "[" * 200_000})}), reply_to=message)

    grid.answers[102] = recurse
    folder = flower(grid, "--model.rounds=1", "--model.scheme=EndToEnd", join_timeout=0.2)
    assert column(folder, "client/participants") == [2]
    assert "node 102 does not take part: its answer is malformed: " in caplog.text


def test_what_nodes_announce_is_bounded_by_the_others(grid: Any) -> None:
    engine = FlowerEngine(grid, RoundSettings(), "", Path(), lambda *_: 0)
    engine._announced = {0: 100, 1: 2**62, 2: 300}
    participation = Participation([1, 1, 1, 1000])
    engine._limit_images(participation)
    assert participation.images == [100, 1200, 300, 1000]
    engine._settings = RoundSettings(max_client_images=150)
    engine._limit_images(participation)
    assert participation.images == [100, 150, 150, 1000]


@pytest.mark.parametrize("settings", [{"enough_replies": 2}, {"min_replies": 2}])
def test_a_private_run_does_not_wait_for_numbers_of_answers(
    settings: dict[str, int], grid: Any, flower: Flower
) -> None:
    pytest.importorskip("dp_accounting", reason="the extra fedssl[privacy] is not installed")
    private = ["--model.aggregation=PrivateMean", "--model.aggregation.clip=1.0"]
    with pytest.raises(RuntimeError, match="PrivateMean must not tell who answers: leave enough-replies at 0"):
        flower(grid, *private, "--model.aggregation.noise_multiplier=5.0", **settings)


def test_what_flower_cannot_do_is_refused(grid: Any, flower: Flower) -> None:
    with pytest.raises(RuntimeError, match="model must be FederatedSSL, got CentralizedSSL"):
        flower(grid, config="centralized.yaml", arguments="--trainer.logger=false")
    with pytest.raises(RuntimeError, match="memory_budget plans the steps of clients in one process"):
        flower(grid, "--model.memory_budget=1GiB")
    with pytest.raises(RuntimeError, match="min-clients 4: the run has 3 clients"):
        flower(grid, min_clients=4)
