"""What the tests of comparisons take for runs: configurations and results as ``fit`` would leave them."""

from typing import Any

MIB = 2**20


def configuration(seed: int = 0, scheme: str = "EndToEnd", dataset: str = "digits", **model: Any) -> dict[str, Any]:
    """What a run would save, with the settings that matter here."""
    arguments = {"encoder": {"name": "vit"}, "method": {"class_path": "ssl_methods.SimCLR"}, "rounds": 4, **model}
    return {
        "seed_everything": seed,
        "trainer": {"max_epochs": 4, "logger": False},
        "model": {
            "class_path": "fedssl.FederatedSSL",
            "init_args": arguments | {"scheme": {"class_path": f"layerwise.{scheme}"}},
        },
        "data": {
            "class_path": "fedssl.FederatedData",
            "init_args": {
                "dataset": dataset,
                "root": "data",
                "partition": {"class_path": "fedssl.Dirichlet", "init_args": {"beta": 0.5}},
            },
        },
    }


def results(seed: int = 0, scheme: str = "end-to-end", knn: float = 90.0, **costs: Any) -> dict[str, Any]:
    """What a run would have found."""
    return {
        "seed": seed,
        "scheme": scheme,
        "method": "SimCLR",
        "encoder": "vit",
        "depth": 6,
        "rounds": 4,
        "clients": 6,
        "clients_per_round": 3,
        "local_epochs": 2,
        "stage_rounds": [4] if scheme == "end-to-end" else [2, 2],
        "knn_top1": knn,
        "linear_top1": knn + 1,
        "random_init_knn_top1": 50.0 + seed,
        "random_init_linear_top1": 60.0,
        "down_bytes_per_client": 80.0 * MIB,
        "up_bytes_per_client": 80.0 * MIB,
        "macs_per_client": 1000e9,
        "peak_activation_bytes": 50 * MIB,
        "wall_seconds": 10.0,
        "commit": "abc",
        "versions": {"fedssl": "0"},
    } | costs
