"""Evaluation of any encoder that timm can load."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import timm
from timm.models import load_checkpoint
from torch import Tensor, nn
from torchvision.transforms.v2.functional import normalize

from linear_eval.evaluate import EvaluationSettings
from linear_eval.finetune import FinetuneSettings
from linear_eval.module import EvaluatedModule

WEIGHTS = "model.safetensors"


class TimmEncoder(EvaluatedModule):
    """Encoder from a folder with timm's ``config.json`` and ``model.safetensors``, for ``validate`` and ``test``.

    Normalisation is taken from the folder's ``pretrained_cfg``. One kind of folder loads here but not in timm alone: a
    ResNet for small images, whose ``config.json`` has ``"stem": "small"``.

    Args:
        folder: Folder of the encoder, for example the ``encoder`` folder of a run.
        evaluation: Settings of kNN and probe.
        finetuning: Settings for fine-tuning a copy too; ``None`` leaves that out.
        seed: Seed of the fine-tuning.

    Raises:
        FileNotFoundError: The folder has no ``config.json``.
        ValueError: ``config.json`` names an unknown stem.
    """

    def __init__(
        self,
        folder: str,
        evaluation: EvaluationSettings = EvaluationSettings(),  # noqa: B008 (frozen)
        finetuning: FinetuneSettings | None = None,
        seed: int = 42,
    ) -> None:
        if not (Path(folder) / "config.json").is_file():
            raise FileNotFoundError(f"{folder} is no timm encoder folder: it has no config.json")
        encoder = load_encoder(Path(folder))
        super().__init__(encoder, evaluation, finetuning, seed)
        config = encoder.pretrained_cfg
        self.mean, self.std = list(config["mean"]), list(config["std"])
        self.image_size = int(config["input_size"][-1])
        self.in_channels = int(config["input_size"][0])

    def setup(self, stage: str) -> None:
        """Lightning's hook: compare the images with the encoder's expected input.

        Raises:
            ValueError: Size or channels differ.
        """
        images = self.trainer.datamodule.eval_train  # type: ignore[attr-defined]
        found, wanted = (images.image_size, images.channels), (self.image_size, self.in_channels)
        if found != wanted:
            raise ValueError(
                f"images have {found[0]} pixels a side and {found[1]} channels, the encoder expects {wanted[0]} and "
                f"{wanted[1]}: set --data.image_size {wanted[0]} --data.channels {wanted[1]}"
            )

    def normalize(self, images: Tensor) -> Tensor:
        """Return (images / 255 - mean) / std."""
        return normalize(images.float() / 255, self.mean, self.std)


def load_encoder(folder: Path) -> Any:
    """Load the timm model of a folder, without classifier.

    Raises:
        ValueError: ``config.json`` names a stem other than ``timm`` and ``small``, or has another checksum.
    """
    config = json.loads((folder / "config.json").read_text())
    stem = config.get("stem", "timm")
    if stem not in ("timm", "small"):
        raise ValueError(f"{folder / 'config.json'} has the stem {stem!r}; allowed: 'timm', 'small'")
    if "sha256" in config and (folder / WEIGHTS).is_file():  # noted by the run that exported the encoder
        with (folder / WEIGHTS).open("rb") as weights:
            if hashlib.file_digest(weights, "sha256").hexdigest() != config["sha256"]:
                raise ValueError(f"{folder / WEIGHTS} is damaged or was exchanged: config.json has another sha256")
    if stem == "timm":
        return timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
    arguments = config["model_args"] | {"num_classes": 0}
    model = timm.create_model(config["architecture"], pretrained_cfg_overlay=config["pretrained_cfg"], **arguments)
    in_channels, channels = config["pretrained_cfg"]["input_size"][0], model.feature_info[0]["num_chs"]
    model.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    load_checkpoint(model, str(folder / WEIGHTS))
    return model
