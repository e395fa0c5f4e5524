"""Recipe of a run: model and data as text, from which clients build exactly what the server has."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from pytorch_lightning import LightningDataModule
from pytorch_lightning.cli import LightningArgumentParser

from fedssl.cli.names import check_class_paths, restrict_class_paths
from fedssl.data.clients import ClientData
from fedssl.training.federated import FederatedSSL
from linear_eval import EvaluatedModule


@dataclass(frozen=True)
class Recipe:
    """Model and data that a recipe describes.

    Args:
        module: Model with the settings of local training.
        data: Data module, not loaded yet.
        mixed_precision: Use bfloat16 where that is safe.
    """

    module: FederatedSSL
    data: ClientData
    mixed_precision: bool

    def autocast(self, device: torch.device) -> torch.autocast:
        """Precision context of local training."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.mixed_precision)


def write_recipe(config: dict[str, Any]) -> str:
    """Write the recipe of a parsed configuration, with its seed filled in.

    The aggregation is left out, because its settings may be secret. So are files of pretrained weights: only the server
    has them, and it sends every layer that a client needs.

    Args:
        config: Configuration of the command line, all defaults included.

    Raises:
        ValueError: The configuration is not that of a federated run.
    """
    # Copied: what is left out below must stay in the caller's configuration.
    recipe = {key: copy.deepcopy(config[key]) for key in ("model", "data")}
    for key, name in (("model", "FederatedSSL"), ("data", "FederatedData or FederatedText")):
        if "init_args" not in recipe[key]:
            raise ValueError(f"{key} must be {name} or a class derived from it")
        if recipe[key]["init_args"].get("seed") is None:
            recipe[key]["init_args"]["seed"] = config["seed_everything"]
    recipe["model"]["init_args"].pop("aggregation", None)
    recipe["model"]["init_args"].pop("heads", None)
    recipe["model"]["init_args"]["encoder"]["init_args"].pop("weights", None)
    return yaml.safe_dump(recipe | {"precision": config["trainer"].get("precision")}, sort_keys=False)


def read_recipe(
    text: str, data_root: str | None = None, check: Callable[[dict[str, Any]], None] = lambda _: None
) -> Recipe:
    """Build model and data module from a recipe.

    Args:
        text: Recipe from ``write_recipe``. Its classes are imported and called, so the server must be trusted.
        data_root: Folder of all data sets on this machine; ``None`` takes the recipe's.
        check: Called with the parsed settings before anything is built from them.
    """
    # First of all, because parsing already imports the classes that the text names.
    restrict_class_paths()
    recipe = yaml.safe_load(text)
    precision = recipe.pop("precision")
    if data_root is not None:
        given = recipe["data"]["init_args"]
        # Labelled images of the evaluation are loaded too, and must not come from elsewhere on this machine.
        given |= {key: data_root for key in ("root", "eval_root") if given.get(key) is not None}
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(EvaluatedModule, "model", subclass_mode=True)
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    parsed = parser.parse_object(recipe)
    check_class_paths(parsed)
    check(parsed.as_dict())
    built = parser.instantiate_classes(parsed)
    return Recipe(built.model, built.data, precision == "bf16-mixed")
