"""A run that is stopped and continued elsewhere goes on bit for bit."""

import copy
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adam

from fedssl.client.bank import ActivationBank
from fedssl.server.aggregation import SCAFFOLD, FedDyn, FedNova
from fedssl.server.calibration import Calibration
from fedssl.server.yogi import Yogi
from layerwise import LayerWise, Progressive
from ssl_methods.alignment import GlobalAlignment, MoonAlignment


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint file gives back, loaded without running code from it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "BYOL": {"method": "BYOL", "alignment": GlobalAlignment()},
    "Barlow Twins": {"method": "BarlowTwins"},
    "SimSiam": {"method": "SimSiam"},
    "VICReg": {"method": "VICReg"},
    "DINO": {"method": "DINO"},
    "MAE": {"method": "MAE"},
    "MOON": {"method": "MoCoV3", "alignment": MoonAlignment()},
    "FedAvgM": {"server_optimizer": partial(SGD, lr=0.7, momentum=0.9)},
    "FedAdam": {"server_optimizer": partial(Adam, lr=0.01)},
    "FedYogi": {"server_optimizer": partial(Yogi, lr=0.01)},
    "FedDyn": {"aggregation": FedDyn(), "proximal": 0.1, "sizes": (4, 9, 8), "cohort_size": 2},
    "FedNova": {"aggregation": FedNova(momentum=0.9), "sizes": (4, 9, 8)},
    "SCAFFOLD": {"aggregation": SCAFFOLD(), "sizes": (4, 9, 8), "cohort_size": 2},
    "calibration": {"calibration": Calibration(batch_size=4)},
    "partial": {"cohort_size": 2, "dropout": 0.3},
    "growth": {"scheme": LayerWise(weight_transfer=True, renew_heads=True)},
    "bank": {"bank": ActivationBank(pairs=2, refresh=5)},
    "progressive": {"scheme": Progressive(weight_transfer=True), "proximal": 0.1},
}


FEW = ("plain", "DINO", "MOON", "FedYogi", "SCAFFOLD", "FedDyn", "calibration", "partial", "bank")
"""Variants of which each keeps another kind of state; the others are slow."""


@pytest.mark.parametrize(
    ("variant", "stop"),
    [
        *(pytest.param(name, 3, marks=() if name in FEW else pytest.mark.slow) for name in VARIANTS),
        ("growth", 4),
    ],
)
def test_a_resumed_run_continues_bit_for_bit(variant: str, stop: int, make_world: Callable[..., Any]) -> None:
    """Stages last two rounds: 3 is in the middle of one, 4 between two."""
    settings = {"rounds": 6, "sizes": (4, 4, 8)} | VARIANTS[variant]
    whole, resumed = (make_world(**copy.deepcopy(settings)) for _ in range(2))
    whole.run(stop)
    checkpoint = through_a_file(whole.checkpoint())
    resumed.restore(checkpoint)
    assert resumed.server.round == stop
    assert resumed.server.model.encoder.depth == whole.server.model.encoder.depth
    assert repr(resumed.run(6 - stop)) == repr(whole.run(6 - stop))
    weights = resumed.weights()
    assert all(torch.equal(weights[key], tensor) for key, tensor in whole.weights().items())
    assert resumed.server.ledger.clients == whole.server.ledger.clients
    assert resumed.server.failed_updates == whole.server.failed_updates


def test_failures_are_counted_across_a_resume(make_world: Callable[..., Any]) -> None:
    stopped, resumed = (make_world(sizes=(4, 1)) for _ in range(2))
    stopped.run(1)
    resumed.restore(through_a_file(stopped.checkpoint()))
    resumed.run(2)
    assert resumed.server.failed_updates == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"scheme": Progressive()},
            "made with scheme layer-wise, this run has progressive; resume with the configuration",
        ),
        ({"rounds": 9}, r"made with rounds per stage \[2, 2, 2\], this run has \[3, 3, 3\]"),
        (
            {"scheme": LayerWise(rounds_per_stage=[1, 2, 3])},
            r"made with rounds per stage \[2, 2, 2\], this run has \[1, 2, 3\]",
        ),
        (
            {"scheme": LayerWise(blocks_per_stage=3, rounds_per_stage=[6])},
            r"made with rounds per stage \[2, 2, 2\], this run has \[6\]",
        ),
        ({"sizes": (4, 4)}, "made with clients 3, this run has 2"),
        ({"seed": 5}, "made with seed 0, this run has 5"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    settings: dict[str, Any], message: str, make_world: Callable[..., Any]
) -> None:
    stopped = make_world(**{"rounds": 6, "sizes": (4, 4, 4)})
    stopped.run(1)
    other = make_world(**{"rounds": 6, "sizes": (4, 4, 4)} | settings)
    with pytest.raises(ValueError, match=message):
        other.server.load_state_dict(stopped.server.state_dict())
    assert other.server.round == 0


def test_blocks_per_stage_are_compared(make_world: Callable[..., Any]) -> None:
    stopped = make_world(LayerWise(blocks_per_stage=[1, 2]), rounds=4)
    other = make_world(LayerWise(blocks_per_stage=[2, 1]), rounds=4)
    with pytest.raises(ValueError, match=r"blocks per stage \[1, 3\], this run has \[2, 3\]"):
        other.server.load_state_dict(stopped.server.state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "BYOL"}, "made with method SimCLR, this run has BYOL"),
        ({"epochs": 2}, "made with local epochs 1, this run has 2"),
        ({"proximal": 0.5}, r"made with proximal 0\.0, this run has 0\.5"),
        ({"alignment": MoonAlignment()}, "made with alignment NoneType, this run has MoonAlignment"),
    ],
)
def test_local_settings_are_compared(settings: dict[str, Any], message: str, make_world: Callable[..., Any]) -> None:
    stopped, other = make_world(), make_world(**settings)
    with pytest.raises(ValueError, match=message):
        other.local.load_state_dict(stopped.local.state_dict())
