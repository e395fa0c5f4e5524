"""Text in the federation: division, training layer by layer and end to end, plans, perplexity, export."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer
from torch.optim import SGD

from fedssl import FederatedData, FederatedSSL, FederatedText, WholeClasses
from fedssl.data.datasets import TextSet
from fedssl.planning.plan import Planner
from fedssl.runs.results import collect_results, print_results
from fedssl.server.server import Server
from layerwise import CausalTransformerSpec, EndToEnd, LastLayers, LayerWise, LoRA, build_encoder
from linear_eval import FinetuneSettings
from ssl_methods import LanguageModelling

SPEC = CausalTransformerSpec(context=8, depth=2, width=16, heads=2)
PLAY = "".join(
    f"{name}:\n{line * times}\n\n"
    for name, line, times in (("A", "to be or ", 20), ("B", "not to ", 5), ("C", "be", 20))
)


class Tied(LanguageModelling):
    """Its head is the embedding of characters."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.lm_head.weight = self.backbone.stem.characters.weight


@pytest.fixture
def data(tmp_path: Path):
    (tmp_path / "play.txt").write_text(PLAY)

    def make(**settings: Any) -> FederatedText:
        defaults: dict[str, Any] = {"dataset": "play.txt", "root": str(tmp_path), "context": 8, "clients": 2, "seed": 0}
        return FederatedText(**defaults | settings)

    return make


def make_module(**settings: Any) -> FederatedSSL:
    defaults: dict[str, Any] = {
        "encoder": SPEC,
        "method": LanguageModelling,
        "augment": None,
        "optimizer": partial(SGD, lr=0.1),
        "scheme": EndToEnd(),
        "rounds": 2,
        "batch_size": 2,
        "seed": 0,
    }
    return FederatedSSL(**defaults | settings)


def fit(module: FederatedSSL, data: FederatedText) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "num_sanity_val_steps": 0}
    trainer = Trainer(max_epochs=module.settings.rounds, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(module, datamodule=data)
    return trainer


def test_speakers_stay_whole_and_clients_differ_in_size() -> None:
    labels = np.repeat(np.arange(5), [40, 1, 7, 7, 3])
    texts = TextSet(
        "play", {name: "x" * (8 * pieces + 1) for name, pieces in zip("ABCDE", (40, 1, 7, 7, 3), strict=True)}, 8
    )
    parts = WholeClasses()(texts, 2, np.random.default_rng(0))
    speakers = [set(labels[part]) for part in parts]
    assert speakers[0] | speakers[1] == {0, 1, 2, 3, 4}
    assert not speakers[0] & speakers[1]
    assert sorted(map(len, speakers)) == [2, 3]
    with pytest.raises(ValueError, match="5 classes cannot be dealt out to 6 clients: use IID"):
        WholeClasses()(texts, 6, np.random.default_rng(0))


def test_clients_hold_speakers_and_ends_are_held_out(data) -> None:
    text = data()
    text.setup("fit")
    assert text.datasets.sizes == [8, 18]
    assert [len(client.labels.unique()) for client in text.datasets.clients] == [2, 1]
    assert len(text.pool) == 26
    other = data(clients=3)
    other.setup("fit")
    assert torch.equal(other.eval_test.rows, text.eval_test.rows)
    assert "A" in text.table()


def test_impossible_settings_are_refused(data) -> None:
    for settings, message in (
        ({"clients": 0}, "clients must be at least 1, got 0"),
        ({"context": 0}, "context must be at least 1, got 0"),
        ({"eval_batch_size": 0}, "eval_batch_size must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            data(**settings)
    with pytest.raises(ValueError, match="3 classes cannot be dealt out to 4 clients"):
        data(clients=4).setup("fit")
    with pytest.raises(ValueError, match="test_fraction 0 must be above 0"):
        data(test_fraction=0).setup("fit")


@pytest.mark.parametrize(
    "scheme", [EndToEnd(), LayerWise(weight_transfer=True), LastLayers(), LoRA([2])], ids=lambda each: each.name
)
def test_a_run_is_evaluated_by_perplexity(data, scheme) -> None:
    module, text = make_module(scheme=scheme), data()
    trainer = fit(module, text)
    assert trainer.callback_metrics["eval/perplexity"] > 1
    assert "eval/knn_top1" not in trainer.callback_metrics
    trainer.test(module, datamodule=text, verbose=False)
    results = collect_results(module, 0.0)
    texts = text.eval_test.gather(torch.arange(len(text.eval_test)))
    mean = module.model.method.token_nll(module.model.encoder, texts).mean().item()
    assert results["perplexity"] == pytest.approx(np.exp(mean))
    assert results["bits_per_character"] == pytest.approx(mean / np.log(2))
    assert results["test_characters"] == 8 * len(text.eval_test)
    assert "knn_top1" not in results
    assert 1 < results["ngram_perplexity"] < results["perplexity"]  # three texts that repeat a line, and two rounds
    print_results(results, Path())


def test_layer_wise_training_leaves_frozen_layers_as_they_are(data) -> None:
    module, text = make_module(scheme=LayerWise(), rounds=4), data()
    text.setup("fit")
    module.prepare(text)
    for _ in range(2):
        _round(module, text)
    frozen = {key: tensor.clone() for key, tensor in module.model.encoder.stem.state_dict().items()}
    head = module.model.method.lm_head.weight.clone()
    _round(module, text)
    assert all(torch.equal(tensor, frozen[key]) for key, tensor in module.model.encoder.stem.state_dict().items())
    assert not torch.equal(module.model.method.lm_head.weight, head)


def _round(module: FederatedSSL, data: FederatedText) -> None:
    server = module.federation.server
    assert isinstance(server, Server)
    cohort = server.begin_round()
    results = [
        module.federation.client(server.make_task(client), data.datasets.clients[client])
        for client in cohort.participants
    ]
    server.end_round(iter(results))


def test_a_plan_has_the_costs_of_the_run(data) -> None:
    module, text = make_module(scheme=LayerWise(), rounds=4), data()
    fit(module, text)
    planned = Planner(make_module(scheme=LayerWise(), rounds=4).settings, text.datasets.sizes).plan(LayerWise())
    ledger = module.federation.server.ledger.summary()
    assert sum(stage.macs for stage in planned) == ledger["macs_per_client"]
    assert sum(stage.down_bytes for stage in planned) == ledger["down_bytes_per_client"]
    assert max(stage.step.activations for stage in planned) == ledger["peak_activation_bytes"]


def test_a_memory_budget_changes_no_weight(data) -> None:
    text = data(clients=1)
    text.setup("fit")
    settings: dict[str, Any] = {"encoder": replace(SPEC, depth=1), "rounds": 1, "batch_size": 18}
    (stage,) = Planner(make_module(**settings).settings, text.datasets.sizes).plan(EndToEnd())
    budget = f"{stage.step.peak - stage.step.activations // 4}B"
    runs = [make_module(**settings, memory_budget=each) for each in (None, budget)]
    for module in runs:
        fit(module, text)
    free, planned = (module.model.encoder.state_dict() for module in runs)
    assert (
        runs[1].federation.server.ledger.summary()["macs_per_client"]
        > runs[0].federation.server.ledger.summary()["macs_per_client"]
    )
    assert all(torch.equal(tensor, planned[key]) for key, tensor in free.items())


def test_an_exported_encoder_starts_another_run(data, tmp_path: Path) -> None:
    module = make_module(scheme=LoRA([2]))
    for adapter in module.model.encoder.adapters.parameters():
        torch.nn.init.constant_(adapter, 0.1)
    module.model.encoder.depth = 1
    module.export(tmp_path / "encoder")
    config = json.loads((tmp_path / "encoder" / "config.json").read_text())
    assert (config["architecture"], config["depth"], len(config["characters"])) == ("causal_transformer", 1, 96)
    settings = {key: config[key] for key in ("vocabulary", "context", "depth", "width", "heads")}
    again = build_encoder(CausalTransformerSpec(**settings, weights=str(tmp_path / "encoder")), seed=9)
    texts = torch.randint(0, 97, (2, 8), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(again(texts), module.model.encoder(texts), atol=1e-5)


def test_tied_weights_are_refused_unless_all_layers_are_trained(data) -> None:
    text = data()
    text.setup("fit")
    make_module(method=Tied).prepare(text)
    make_module(method=Tied, scheme=LastLayers()).prepare(text)  # without devices everybody trains all layers
    with pytest.raises(ValueError, match="lm_head is tied to stem, which client 0 freezes in stage 2: untie them"):
        make_module(method=Tied, scheme=LayerWise()).prepare(text)


def test_images_and_text_do_not_mix(data) -> None:
    with pytest.raises(ValueError, match="evaluation and finetuning classify images: leave them out for text"):
        make_module(finetuning=FinetuneSettings())
    with pytest.raises(ValueError, match="alignment compares views: LanguageModelling has none"):
        make_module(alignment=object())
    images = FederatedData(dataset="digits", clients=2, seed=0)
    images.setup("fit")
    with pytest.raises(ValueError, match="digits is images, but the encoder causal_transformer is for text"):
        make_module().prepare(images)
    wide = data(context=16)
    wide.setup("fit")
    with pytest.raises(ValueError, match=r"pieces of 16 characters, the encoder reads 8: set --data.context 8"):
        make_module().prepare(wide)
