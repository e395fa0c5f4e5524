"""Flower's federation is the one of a single process: the same weights, the same traffic."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import TINY_FEDERATION

from fedssl.__main__ import main
from fedssl.training.export import timm_state
from layerwise import EncoderSpec, build_encoder

LAYERWISE = (
    "--model.calibration.epochs=1",
    "--model.calibration.batch_size=8",
    "--data.auxiliary_fraction=0.2",
    "--model.alignment=MoonAlignment",
)
LAST_LAYERS = (
    "--model.scheme=LastLayers",
    "--model.aggregation=UnchangedMean",
    "--model.encoder.weights=pretrained.pt",
    "--model.devices=DeviceClasses",
    "--model.devices.classes=[{count: 1}, {memory: 600KiB, count: 2}]",
    "--model.bank=ActivationBank",
)
RUNS = {
    "layer-wise": ("lw_fedssl.yaml", LAYERWISE),
    "mixed precision": (
        "lw_fedssl.yaml",
        ("--trainer.precision=bf16-mixed", "--model.rounds=2", "--model.compression=BFloat16"),
    ),
    "progressive": ("prog_fedssl.yaml", ("--model.alignment=GlobalAlignment", "--model.participation=2")),
    "FedNova": ("lw_fedssl.yaml", ("--model.aggregation=FedNova", "--model.rounds=2", "--model.compression=EightBit")),
    "DINO": ("lw_fedssl.yaml", ("--model.method=DINO", "--model.rounds=2")),
    "FedRolex": (
        "fedssl.yaml",
        (
            *("--model.scheme=FedRolex", "--model.rounds=3", "--model.devices=DeviceClasses"),
            "--model.devices.classes=[{count: 1}, {memory: 600KiB, count: 2}]",
        ),
    ),
    "MAE": ("lw_fedssl.yaml", ("--model.method=MAE", "--model.rounds=2")),
    "FedDyn": (
        "prog_fedssl.yaml",
        (
            *("--model.aggregation=FedDyn", "--model.proximal=0.1", "--model.participation=2", "--model.rounds=4"),
            *("--model.server_optimizer=fedssl.Yogi", "--model.server_optimizer.lr=0.1"),
        ),
    ),
    "SCAFFOLD": (
        "lw_fedssl.yaml",
        (
            *("--model.aggregation=SCAFFOLD", "--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.05"),
            *("--model.lr_schedule.cosine_to=0.1", "--model.base_batch_size=8", "--model.gradient_clip_norm=1.0"),
        ),
    ),
    "last layers": ("lw_fedssl.yaml", LAST_LAYERS),
    "end-to-end": (
        "fedssl.yaml",
        ("--model.start=fedssl.FedEMA", "--model.method=BYOL", "--model.dropout=0.2", "--model.compression=TopK"),
    ),
}


def in_process(folder: Path, config: str, settings: tuple[str, ...]) -> Path:
    main(["fit", "-c", config, *TINY_FEDERATION, "--trainer.logger=false", *settings, f"--run_dir={folder}"])
    return folder


def final_state(folder: Path) -> dict[str, Any]:
    return torch.load(max((folder / "checkpoints").glob("*.ckpt")), weights_only=True)


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").open()))


def save_pretrained(file: Path) -> None:
    """Weights for the encoder of ``TINY``, which only the server has."""
    options = {"patch_size": 4, "depth": 2, "embed_dim": 16, "num_heads": 2, "global_pool": "avg"}
    spec = EncoderSpec("vit_tiny_patch16_224", 16, 1, options=options)
    torch.save(timm_state(build_encoder(spec, seed=5)), file)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_both_engines_give_the_same_weights_and_traffic(
    name: str, grid: Any, flower: Callable[..., Path], tmp_path: Path
) -> None:
    config, settings = RUNS[name]
    save_pretrained(tmp_path / "pretrained.pt")
    here = in_process(tmp_path / "here", config, settings)
    there = flower(grid, *settings, config=config)
    first, second = final_state(here), final_state(there)
    assert first["state_dict"].keys() == second["state_dict"].keys()
    for key, tensor in first["state_dict"].items():
        assert torch.equal(tensor, second["state_dict"][key]), key
    for own, other in zip(rows(here), rows(there), strict=True):
        shared = {key for key in own if key in other and not key.startswith(("time/", "cost/process"))}
        assert {"cost/down_bytes", "cost/up_bytes", "cost/macs", "client/loss"} <= shared
        assert {key: own[key] for key in shared} == {key: other[key] for key in shared}
    results = [json.loads((folder / "results.json").read_text()) for folder in (here, there)]
    for key in ("knn_top1", "linear_top1", "down_bytes_per_client", "up_bytes_max_client", "peak_activation_bytes"):
        assert results[0][key] == results[1][key], key
