"""Pretrained weights from a file, checked name by name and shape by shape before an encoder takes them."""

from __future__ import annotations

import hashlib
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

IN_FOLDER = "model.safetensors"
HEADS_IN_FOLDER = "heads.safetensors"
CHECKSUMS = {IN_FOLDER: "sha256", HEADS_IN_FOLDER: "heads_sha256"}
"""Entries of ``config.json`` with the checksums of the files beside it."""

PICKLED = (".pth", ".pt", ".bin")
WRAPPERS = ("state_dict", "model", "state_dict_ema")
"""Keys under which training scripts store a model's tensors beside other objects."""

CLASSIFIER = re.compile(r"(head|head_dist|fc)\.")
BLOCK = re.compile(r"blocks\.(\d+)\.")
SHOWN = 3
"""Names shown in an error message."""


def load_pretrained(model: nn.Module, path: Path) -> None:
    """Load weights from a file into a timm model without classifier.

    A classifier in the file is left out. Of a Vision Transformer deeper than the model the first blocks are taken, with
    the final norm that followed the last.

    Args:
        model: Model whose parameters and buffers are overwritten.
        path: ``.safetensors``, or ``.pth``, ``.pt`` or ``.bin`` as ``torch.save`` writes them; or a folder with
            ``model.safetensors``, such as the ``encoder`` folder of a run.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file holds no tensors by name, or their names or shapes differ from the model's.
    """
    state = read_weights(path)
    own = model.state_dict()
    # 0 for a model without numbered blocks, such as a ResNet: of those no block is left out.
    depth = 1 + max((int(found[1]) for found in map(BLOCK.match, own) if found), default=-1)
    kept = {name: tensor for name, tensor in state.items() if not _is_left_out(name, depth)}
    _check(own, kept, path)
    model.load_state_dict(kept)


def load_heads(heads: nn.Module, path: Path) -> None:
    """Load the heads of an objective from a file; they must be those of the same objective and sizes.

    Args:
        heads: Modules by name, whose parameters and buffers are overwritten.
        path: File as ``load_pretrained`` takes; or a folder with ``heads.safetensors``, such as a run's ``encoder``.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file holds no tensors by name, or their names or shapes differ from the heads'.
    """
    state, own = read_weights(path, HEADS_IN_FOLDER), heads.state_dict()
    _check(own, state, path, "heads", "objective")
    heads.load_state_dict(state)


def read_weights(path: Path, in_folder: str = IN_FOLDER) -> dict[str, Tensor]:
    """Read the tensors of a file by name; nothing but tensors is unpickled.

    Args:
        path: File, or a folder with it.
        in_folder: Name of the file in a folder.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file holds no tensors by name, or its checksum differs from that in the ``config.json`` beside
            it.
    """
    file = path / in_folder if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"there are no pretrained weights at {file}")
    if file.suffix not in (".safetensors", *PICKLED):
        raise ValueError(f"weights {file} must end in .safetensors, {', '.join(PICKLED)}, or be a folder")
    _check_sha256(file)
    try:
        content = load_file(file) if file.suffix == ".safetensors" else _unpickle(file)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"weights {file} cannot be read: {error}") from error
    state = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), content)
    if not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"weights {file} hold no tensors by name")
    return state


def _check_sha256(file: Path) -> None:
    """Compare the checksum that runs note in ``config.json``, as a ``.safetensors`` file has none of its own."""
    config = file.with_name("config.json")
    entry = CHECKSUMS.get(file.name)
    noted = re.search(rf'"{entry}": "(\w+)"', config.read_text()) if entry and config.is_file() else None
    with file.open("rb") as weights:
        if noted and hashlib.file_digest(weights, "sha256").hexdigest() != noted[1]:
            raise ValueError(f"weights {file} are damaged or were exchanged: {config} has another sha256")


def _unpickle(file: Path) -> dict[str, Any]:
    # A pickle may run code of whoever made it: nothing but tensors is read.
    content = torch.load(file, map_location="cpu", weights_only=True)
    return content if isinstance(content, dict) else {}


def _is_left_out(name: str, depth: int) -> bool:
    block = BLOCK.match(name)
    return bool(CLASSIFIER.match(name)) or (block is not None and 0 < depth <= int(block[1]))


def _check(
    own: dict[str, Tensor], given: dict[str, Tensor], path: Path, what: str = "weights", owner: str = "encoder"
) -> None:
    missing, unknown = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    if missing or unknown:
        parts = [f"lack {_some(missing)}"] if missing else []
        parts += [f"have {_some(unknown)} that the {owner} has not"] if unknown else []
        other = "architecture or depth" if owner == "encoder" else owner
        raise ValueError(f"{what} {path} {' and '.join(parts)}: they are of another {other}")
    differing = [name for name in own if own[name].shape != given[name].shape]
    if differing:
        shapes = [f"{name} {tuple(given[name].shape)}, not {tuple(own[name].shape)}" for name in differing]
        setting = "model.encoder" if owner == "encoder" else "model.method"
        raise ValueError(f"{what} {path} do not fit the {owner}: {_some(shapes)}; set {setting} as they were made")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return "; ".join(names[:SHOWN]) + more
