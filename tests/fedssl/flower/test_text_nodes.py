"""Nodes with text: the federation of a single process, bit for bit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import TINY_TEXT

from fedssl.__main__ import main

FEW = [*TINY_TEXT, "--model.participation=2", "--data.partition=IID", "--trainer.logger=false"]


@pytest.mark.slow
def test_flower_gives_the_same_weights_and_perplexity(grid: Any, flower: Callable[..., Path], tmp_path: Path) -> None:
    here = tmp_path / "here"
    main(["fit", "-c", "pretrain_tiny_lm.yaml", *FEW, f"--run_dir={here}"])
    there = flower(grid, tiny=FEW, config="pretrain_tiny_lm.yaml")
    first, second = (torch.load(max(folder.glob("checkpoints/*.ckpt")), weights_only=True) for folder in (here, there))
    for key, tensor in first["state_dict"].items():
        assert torch.equal(tensor, second["state_dict"][key]), key
    results = [json.loads((folder / "results.json").read_text()) for folder in (here, there)]
    assert results[0]["perplexity"] == results[1]["perplexity"]
