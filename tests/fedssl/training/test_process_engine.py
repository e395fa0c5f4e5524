"""What processes tell each other, and how their Trainer is set up; whole runs are in tests/test_processes.py."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from compare_states import assert_same
from pytorch_lightning import Trainer

from fedssl.client.local_update import ClientState
from fedssl.protocol.messages import Failure, Result
from fedssl.server.aggregation import PrivateMean
from fedssl.server.server import AllClientsFailedError
from fedssl.training.process_engine import ProcessEngine, RankLostError, lost_ranks
from fedssl.training.processes import CohortStrategy, check_trainer, process_settings
from layerwise import EndToEnd
from ssl_methods.alignment import MoonAlignment

RESULT = Result(
    3, {"tail": {"weight": torch.randn(2, 3), "steps": torch.tensor(7), "none": torch.empty(0)}}, 4, 0.5, 0.25, 6, 7, 8
)
MEMORY = ClientState(["tail"], [torch.ones(2, dtype=torch.bfloat16)], {"tail/weight": torch.zeros(3)}, {"mu": 0.1})


@pytest.mark.parametrize(
    "message", [(RESULT, MEMORY), (Failure(2, "diverged", macs=5), None)], ids=["result", "failure"]
)
def test_messages_arrive_as_they_were_sent(
    message: Any, make_world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = []

    def broadcast(objects: list[bytes], source: int, device: torch.device) -> None:
        wire.extend(filter(None, objects))
        objects[:] = wire

    monkeypatch.setattr("torch.distributed.broadcast_object_list", broadcast)
    world = make_world(EndToEnd())
    engines = [ProcessEngine(world.local, world.clients, rank, 2) for rank in range(2)]
    assert engines[0]._broadcast(message, 0) is message
    for own, sent in zip(engines[1]._broadcast(None, 0), message, strict=True):
        assert_same(vars(own) if own else own, vars(sent) if sent else sent)


def test_one_process_trains_all_clients(make_world: Callable[..., Any]) -> None:
    by_hand, world = (make_world(EndToEnd(), alignment=MoonAlignment()) for _ in range(2))
    ranks = ProcessEngine(world.local, world.clients)
    for _ in range(2):
        ranks.connect(world.server)
        report = world.server.end_round(ranks.train(world.server, world.server.begin_round()))
        assert report == by_hand.round()
        assert ranks.metrics(report) == {}
    assert_same(world.checkpoint(), by_hand.checkpoint())


def fail(world: Any, error: BaseException, *clients: int) -> None:
    """Makes the local training of some clients raise."""
    train = world.local._train

    def failing(task: Any, *args: Any) -> Any:
        if task.client_id in clients:
            raise error
        return train(task, *args)

    world.local._train = failing


def test_an_exception_is_the_failure_of_its_client(make_world: Callable[..., Any]) -> None:
    world = make_world(EndToEnd())
    fail(world, RuntimeError("no memory left"), 1)
    ranks = ProcessEngine(world.local, world.clients)
    report = world.server.end_round(ranks.train(world.server, world.server.begin_round()))
    assert report.trained == (0, 2)
    assert report.failures == (Failure(1, "RuntimeError: no memory left"),)


def test_a_run_in_which_all_clients_raise_ends_with_the_reason(make_world: Callable[..., Any]) -> None:
    world = make_world(EndToEnd())
    fail(world, RuntimeError("no memory left"), 0, 1, 2)
    ranks = ProcessEngine(world.local, world.clients)
    with pytest.raises(AllClientsFailedError, match="update; clients 0, 1, 2: RuntimeError: no memory left"):
        world.server.end_round(ranks.train(world.server, world.server.begin_round()))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), AssertionError("ours")])
def test_what_is_no_clients_fault_ends_the_run(error: BaseException, make_world: Callable[..., Any]) -> None:
    world = make_world(EndToEnd())
    fail(world, error, 1)
    with pytest.raises(type(error)):
        list(ProcessEngine(world.local, world.clients).train(world.server, world.server.begin_round()))


def test_a_device_that_computes_no_more_ends_the_run(
    make_world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(EndToEnd())
    fail(world, RuntimeError("device-side assert"), 1)
    monkeypatch.setattr("fedssl.training.process_engine._works", lambda _: False)
    with pytest.raises(RuntimeError, match="device-side assert"):
        list(ProcessEngine(world.local, world.clients).train(world.server, world.server.begin_round()))


def test_a_process_with_other_settings_is_refused(
    make_world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(EndToEnd(), seed=1)
    first = world.server.settings() | world.local.settings() | {"round": 0, "images of the clients": [4, 9, 8]}
    monkeypatch.setattr(ProcessEngine, "_broadcast", lambda *_: first | {"seed": 0, "weights": "other"})
    with pytest.raises(ValueError, match="process 1 differs from process 0 in seed, weights: all need the same"):
        ProcessEngine(world.local, world.clients, 1, 2).connect(world.server)


def test_all_processes_make_the_noise_of_the_first(
    make_world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dp_accounting", reason="the extra fedssl[privacy] is not installed")
    first, world = PrivateMean(1.0, 2.0), make_world(EndToEnd(), aggregation=PrivateMean(1.0, 2.0))
    monkeypatch.setattr(ProcessEngine, "_broadcast", lambda _, own, __: first.state_dict() if "key" in own else own)
    ProcessEngine(world.local, world.clients, 1, 2).connect(world.server)
    assert world.server.aggregation.state_dict() == first.state_dict()


def test_a_broken_connection_is_a_lost_process() -> None:
    with pytest.raises(RankLostError, match="--ckpt_path last goes on"), lost_ranks():
        raise RuntimeError("Connection closed by peer")


@pytest.mark.parametrize(
    ("strategy", "devices", "divides"),
    [("auto", 1, False), ("auto", 2, True), ("auto", "2", True), ("ddp", 2, True), ("ddp_spawn", 2, False)],
)
def test_several_devices_divide_cohorts(strategy: str, devices: Any, divides: bool) -> None:
    settings = process_settings(strategy, devices)
    assert isinstance(settings.get("strategy"), CohortStrategy) == divides
    assert "devices" not in settings


def test_torchrun_says_how_many_processes_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    settings = process_settings("auto", 1)
    assert (settings["devices"], settings["num_nodes"]) == (3, 2)
    assert isinstance(settings["strategy"], CohortStrategy)


def test_plain_ddp_is_refused() -> None:
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=3, logger=False)
    with pytest.raises(ValueError, match="DDPStrategy cannot divide cohorts among 2 processes"):
        check_trainer(trainer, 3)
    check_trainer(Trainer(accelerator="cpu", devices=2, strategy=CohortStrategy(), max_epochs=3, logger=False), 3)
