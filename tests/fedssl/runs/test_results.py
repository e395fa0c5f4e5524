"""What a run found, in a file and as a table."""

import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from rich.console import Console
from torch.optim import AdamW

from fedssl.data.images import FederatedData
from fedssl.runs.results import (
    accuracy_over_simulated_time,
    collect_results,
    evaluation_results,
    print_results,
    versions,
    write_results,
)
from fedssl.training.federated import FederatedSSL
from fedssl.training.pretraining import CentralizedSSL
from layerwise import EncoderSpec, LayerWise
from linear_eval import Features, evaluate_features
from linear_eval.metrics import ClassificationMetrics, classification_metrics
from ssl_methods import DigitsViews

pytestmark = [pytest.mark.filterwarnings(f"ignore:.*{text}.*") for text in ("LeafSpec", "transfer_batch_to_device")]


def report(module: Any, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    train, test = (Features(torch.randn(n, 4, generator=generator), torch.arange(n) % 3) for n in (60, 30))
    return evaluate_features(train, test, 3, module.evaluation)


@pytest.fixture
def centralized(vit_spec: EncoderSpec, methods: dict[str, Any]) -> CentralizedSSL:
    module = CentralizedSSL(vit_spec, methods["SimCLR"], DigitsViews(), partial(AdamW, lr=1e-3), seed=5)
    module.reports = {"encoder": report(module, 0), "random_init": report(module, 1)}
    return module


@pytest.fixture(scope="module")
def federated(vit_spec: EncoderSpec, methods: dict[str, Any]) -> FederatedSSL:
    module = FederatedSSL(
        vit_spec, methods["BYOL"], DigitsViews(), partial(AdamW, lr=1e-3), LayerWise(), 3, participation=2, seed=5
    )
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        max_epochs=3,
    )
    trainer.fit(module, datamodule=FederatedData(clients=3, train_images=12, seed=0))
    module.reports = {"encoder": report(module, 0), "random_init": report(module, 1)}
    return module


def printed(results: dict[str, Any], folder: Path) -> str:
    text = io.StringIO()
    print_results(results, folder, Console(file=text, width=200))
    return text.getvalue()


def test_federated_results(federated: FederatedSSL) -> None:
    results = collect_results(federated, 12.34)
    server = federated.federation.server
    assert server is not None
    expected = {
        "seed": 5,
        "scheme": "layer-wise",
        "method": "BYOL",
        "encoder": "vit_tiny_patch16_224",
        "depth": 3,
        "rounds": 3,
        "clients": 3,
        "clients_per_round": 2,
        "local_epochs": 1,
        "failed_updates": 0,
        "wall_seconds": 12.3,
    } | server.ledger.summary()
    assert {key: results[key] for key in expected} == expected
    assert results["down_bytes_per_client"] > 0
    assert results["knn_top1"] == federated.reports["encoder"].knn.accuracy
    assert results["random_init_knn_top1"] == federated.reports["random_init"].knn.accuracy
    assert results["versions"]["torch"] == versions()["torch"]


def test_centralized_results_have_no_clients(centralized: CentralizedSSL) -> None:
    results = collect_results(centralized, 1.0)
    assert (results["scheme"], results["method"], results["depth"]) == ("centralized", "SimCLR", 3)
    assert not {"rounds", "clients", "down_bytes_per_client"} & results.keys()


def test_fine_tuning_is_reported(centralized: CentralizedSSL) -> None:
    assert "finetuned_top1" not in evaluation_results(centralized)
    labels = torch.tensor([0, 1, 2, 0])
    tuned: ClassificationMetrics = classification_metrics(labels, torch.tensor([0, 1, 1, 0]), 3)
    centralized.classifiers = {"finetuned": tuned, "random_init_finetuned": tuned}
    results = evaluation_results(centralized)
    assert results["finetuned_top1"] == 75.0
    assert results["finetuned_mean_per_class"] == pytest.approx(200 / 3)
    assert results["random_init_finetuned_f1"] == tuned.f1
    text = printed(collect_results(centralized, 1.0), Path("x"))
    assert "fine-tuned" in text
    assert "from scratch" in text


def test_results_are_json(federated: FederatedSSL, tmp_path: Path) -> None:
    results = collect_results(federated, 1.0)
    write_results(results, tmp_path / "run" / "results.json")
    text = (tmp_path / "run" / "results.json").read_text()
    assert json.loads(text) == results
    assert text.endswith("}\n")
    keys = list(json.loads(text))
    assert keys == sorted(keys)


def test_a_failed_write_leaves_the_older_results(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_results({"a": 1}, path)
    with pytest.raises(TypeError):
        write_results({"a": object()}, path)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_table_for_people(federated: FederatedSSL, tmp_path: Path) -> None:
    results = collect_results(federated, 61.0)
    text = printed(results, tmp_path)
    assert "layer-wise BYOL vit_tiny_patch16_224" in text
    assert f"61 s; everything is in {tmp_path}" in text
    assert f"{results['knn_top1']:.2f}" in text
    assert f"{results['random_init_linear_top1']:.2f}" in text
    assert f"{results['down_bytes_max_client'] / 2**20:,.2f}" in text
    assert "cost of a device" in text


def test_table_without_a_federation(centralized: CentralizedSSL, tmp_path: Path) -> None:
    text = printed(collect_results(centralized, 1.0), tmp_path)
    assert "centralized SimCLR" in text
    assert "cost of a device" not in text


def test_accuracy_over_simulated_time_is_read_from_the_metrics(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.csv"
    metrics.write_text(
        "step,time/simulated_seconds,eval/knn_top1\n0,5.0,\n1,9.5,61.25\n2,14.0,\n3,20.0,70.0\n4,,70.0\n"
    )
    assert accuracy_over_simulated_time(metrics) == [(9.5, 61.25), (20.0, 70.0)]
    metrics.write_text("step,eval/knn_top1\n0,50.0\n")
    assert accuracy_over_simulated_time(metrics) == []
    assert accuracy_over_simulated_time(tmp_path / "none.csv") == []
