"""CAFF and its baselines with text: devices choose the depth, the trained layers and the ranks."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from torch.optim import SGD

from fedssl import IID, DeviceClasses, FederatedSSL, FederatedText, NormWeightedMean, UnchangedMean
from fedssl.costs.prediction import Forecast, Need
from fedssl.federation.federation import Federation
from fedssl.server.server import Server
from layerwise import AllSmall, CausalTransformerSpec, EndToEnd, HeterogeneousLoRA, LastLayers, LoRA, Scheme
from ssl_methods import LanguageModelling

SPEC = CausalTransformerSpec(context=8, depth=3, width=16, heads=2)
RANKS = [1, 2, 4]
KEYS = {"memory": "peak_memory_bytes", "upload_limit": "active_bytes", "macs_limit": "macs"}


class Tied(LanguageModelling):
    """Its head is the embedding of characters."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.lm_head.weight = self.backbone.stem.characters.weight


@pytest.fixture
def data(tmp_path: Path) -> FederatedText:
    (tmp_path / "play.txt").write_text("to be or not to be, that is the question. " * 20)
    text = FederatedText("play.txt", str(tmp_path), context=8, clients=3, partition=IID(), seed=0)
    text.setup("fit")
    return text


def make_module(scheme: Scheme, **settings: Any) -> FederatedSSL:
    defaults: dict[str, Any] = {"method": LanguageModelling, "rounds": 2, "batch_size": 4, "seed": 0}
    return FederatedSSL(SPEC, augment=None, optimizer=partial(SGD, lr=0.1), scheme=scheme, **defaults | settings)


def forecast_of(module: FederatedSSL) -> Forecast:
    return Federation(module.settings, [4]).forecast


def needs(scheme: Scheme, data: FederatedText) -> dict[int, Need]:
    """What the largest client needs, by the number of trained blocks or adapters."""
    forecast, stages = forecast_of(make_module(scheme)), scheme.stages(3, 2)
    return {choice.num_trained: forecast(choice, max(data.datasets.sizes)) for choice in scheme.choices(stages[0])}


def devices(key: str, *needed: Need, less: int = 0) -> DeviceClasses:
    """One client each with just what is needed, or a little less."""
    amounts = [getattr(need, KEYS[key]) - less for need in needed]
    return DeviceClasses([{key: amount if key == "macs_limit" else f"{amount}B"} for amount in amounts])


def served(module: FederatedSSL, data: FederatedText) -> tuple[Server, list[int]]:
    """The server, and what every device trains: blocks or adapters; 0: nothing fits."""
    module.prepare(data)
    assert module.federation
    server = module.federation.server
    choices = module.settings.scheme.choices(server.stage)
    chosen = [server.participation.choose(client, choices) for client in range(3)]
    return server, [0 if each is None else choices[each].num_trained for each in chosen]


@pytest.mark.parametrize("key", KEYS)
def test_devices_train_the_last_layers_that_fit(data: FederatedText, key: str) -> None:
    need = needs(LastLayers(), data)
    module = make_module(LastLayers([1, 2, 3]), devices=devices(key, need[3], need[2], need[1]))
    server, trained = served(module, data)
    assert (server.stage.depth, trained) == (3, [3, 2, 1])


def test_a_fleet_of_small_devices_takes_fewer_blocks(data: FederatedText) -> None:
    """Two blocks of which both are trained take fewer operations than three of which two are."""
    forecast = forecast_of(make_module(LastLayers()))
    need = forecast(EndToEnd().stages(2, 1)[0], max(data.datasets.sizes))
    module = make_module(LastLayers([2, 3]), devices=devices("macs_limit", need, need, need))
    server, trained = served(module, data)
    assert (server.stage.depth, trained) == (2, [2, 2, 2])


def test_all_small_and_one_rank_suit_the_smallest_device(data: FederatedText) -> None:
    need = needs(LastLayers(), data)
    small = make_module(AllSmall([1, 2, 3]), devices=devices("upload_limit", need[3], need[2], need[2]))
    assert served(small, data)[0].stage.trained == (0,)
    rank = needs(HeterogeneousLoRA(RANKS), data)
    lora = make_module(LoRA(RANKS), devices=devices("memory", rank[3], rank[2], rank[2]))
    assert served(lora, data)[1] == [2, 2, 2]


@pytest.mark.parametrize(
    ("scheme", "rule"), [(LastLayers(), UnchangedMean()), (HeterogeneousLoRA(RANKS), NormWeightedMean())]
)
def test_a_round_changes_what_was_trained_and_nothing_else(data: FederatedText, scheme: Scheme, rule: Any) -> None:
    need = needs(scheme, data)
    module = make_module(scheme, devices=devices("memory", need[2], need[1], need[1]), aggregation=rule)
    assert served(module, data)[1] == [2, 1, 1]
    before = {name: [t.clone() for t in part.state_dict().values()] for name, part in module.model.parts.items()}
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "limit_val_batches": 0,
    }
    Trainer(max_epochs=2, accelerator="cpu", enable_model_summary=False, **quiet).fit(module, datamodule=data)
    after = {name: list(part.state_dict().values()) for name, part in module.model.parts.items()}
    changed = {n for n in before if not all(torch.equal(a, b) for a, b in zip(before[n], after[n], strict=True))}
    expected = (
        {"block.1", "block.2"}
        if isinstance(scheme, LastLayers)
        else {f"adapter.{block}.{number}" for block in range(3) for number in range(2)}
    )
    assert changed == expected | {"tail", "head.lm_head"}


def test_who_cannot_train_everything_sits_out(data: FederatedText) -> None:
    need = needs(LastLayers(), data)
    module = make_module(EndToEnd(), devices=devices("memory", need[3], need[2], need[1]))
    server, trained = served(module, data)
    assert trained == [3, 0, 0]
    assert server.begin_round().participants == (0,)


def test_budgets_that_nothing_meets_give_what_is_missing(data: FederatedText) -> None:
    least = needs(LastLayers(), data)[1]
    module = make_module(LastLayers(), devices=devices("upload_limit", least, least, least, less=3))
    with pytest.raises(ValueError, match="lacks 3 B of upload a round"):
        module.prepare(data)


def test_tied_weights_are_refused_unless_every_device_trains_all_layers(data: FederatedText) -> None:
    need = needs(LastLayers(), data)
    make_module(LastLayers(), method=Tied, devices=devices("memory", need[3], need[3], need[3])).prepare(data)
    with pytest.raises(ValueError, match="lm_head is tied to stem, which client 1 freezes in stage 1"):
        make_module(LastLayers(), method=Tied, devices=devices("memory", need[3], need[2], need[3])).prepare(data)
    with pytest.raises(ValueError, match="lm_head is tied to stem, which client 0 freezes in stage 1"):
        make_module(LoRA(RANKS), method=Tied).prepare(data)
