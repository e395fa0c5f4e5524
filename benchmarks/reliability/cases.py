"""Configurations that a tired or hostile hand might write: numbers out of range, nodes of another kind."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator
from typing import Any

VIT = "{patch_size: 4, depth: 2, embed_dim: 16, num_heads: 2, global_pool: avg}"
COMMON = ["--model.local_epochs=1", "--model.batch_size=8", "--trainer.check_val_every_n_epoch=1"]
IMAGES = ["--data.dataset=digits", "--data.train_images=60", "--data.eval_train_images=60", *COMMON]
FINE = ["--model.finetuning.epochs=1", "--model.finetuning.warmup_epochs=0"]
SSL = [f"--model.encoder.options={VIT}", "--model.method.hidden_dim=16", "--model.method.output_dim=8", *IMAGES]
CENTRAL = [setting for setting in SSL if setting not in COMMON[:2]]
RESNET = ["--model.encoder.options={channels: [8, 8, 16, 16]}", *IMAGES, "--data.partition=IID"]
TEXT = ["--model.encoder={context: 32, depth: 2, width: 16, heads: 2}", "--data.context=32", *COMMON]
PAPER = [*SSL, *FINE, "--model.rounds=2", "--data.clients=3", "--data.partition=IID", "--data.eval_train_split=train"]
PAPER += ["--model.encoder.image_size=16", "--data.image_size=16", "--data.channels=3", "--data.eval_dataset=digits"]
BASES: dict[str, list[str]] = {
    "lw_fedssl": [*SSL, "--model.rounds=2", "--data.clients=2"],
    "prog_fedssl": [
        "--model.method=BYOL",
        *SSL,
        "--model.rounds=2",
        "--model.alignment=MoonAlignment",
        "--data.clients=2",
    ],
    "fedssl": [
        *SSL,
        "--model.rounds=2",
        "--model.calibration.epochs=1",
        "--data.auxiliary_fraction=0.2",
        "--data.clients=2",
    ],
    "fll": ["--model.method=MoCoV3", *SSL, "--model.rounds=2", "--model.scheme.layer_budget=2"],
    "fedhybrid": [*SSL, "--model.rounds=2"],
    "centralized": [*CENTRAL, "--trainer.max_epochs=1"],
    "caff": [f"--model.encoder.options={VIT}", "--model.scheme.depths=[1,2]", "--model.rounds=2", *IMAGES],
    "smartfreeze": [*RESNET, "--model.rounds=4", "--model.participation=2"],
    "progfed": [*RESNET, "--model.rounds=11"],
    "pretrain_tiny_lm": [*TEXT, "--model.rounds=2", "--data.clients=3"],
    "paper/lw_fedssl_v3": PAPER,
    "paper/prog_fedssl_v4": PAPER,
}
"""Shipped configurations, shrunk to seconds."""

HOSTILE: tuple[Any, ...] = (
    None, "", -1, 0, 1e308, -1e308, math.nan, math.inf, [], {}, [[]], {"": None}, True, "1e", "None", "null", "../..",
    "/etc/passwd", "x" * 5000, "\x00", "%s%n", "${HOME}", 2**63, -(2**31), "!!python/object:os.system", [None] * 3,
    {"class_path": "os.system", "init_args": {"command": "exit 9"}}, {"class_path": None}, {"init_args": 5},
    {"class_path": "fedssl.FederatedSSL"}, {"class_path": "torch.nn.Linear"}, "subprocess.Popen", "torch.load",
)  # fmt: skip
INTEGERS = (0, -1, 1, 10**12)
FRACTIONS = (0.0, -1.0, 1e-300, 1e308, math.nan, math.inf)
PLACES = ("run_dir", "ckpt_path", "config", "weights_only")
"""Where a run writes is the harness's affair."""


def hostile(configurations: dict[str, Any], number: int, seed: int = 0) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Configurations with one node replaced, drawn at random, in turn: base, whole configuration, and what was done."""
    rng = random.Random(seed)
    bases = sorted(configurations)
    for index in range(number):
        base = bases[index % len(bases)]
        path = rng.choice([path for path, _ in nodes(configurations[base])])
        value = rng.choice(HOSTILE)
        yield base, replaced(configurations[base], path, value), f"{'.'.join(path)} = {str(value)[:60]!r}"


def nonsense(configurations: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Every number of every configuration, once by its name, with values of the right type and no sense."""
    seen: set[str] = set()
    for base, configuration in configurations.items():
        for path, value in nodes(configuration):
            name = ".".join(part for part in path if part != "init_args")
            if isinstance(value, bool) or not isinstance(value, int | float) or name in seen:
                continue
            seen.add(name)
            for wrong in INTEGERS if isinstance(value, int) else FRACTIONS:
                yield base, replaced(configuration, path, wrong), f"{name} = {wrong}"


def nodes(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All paths in a configuration but the root's, and what is there."""
    for key, value in tree.items() if isinstance(tree, dict) else ():
        if key not in PLACES:
            yield (*path, key), value
            yield from nodes(value, (*path, key))


def replaced(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A copy with one other value."""
    tree = copy.deepcopy(tree)
    node = tree
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return tree
