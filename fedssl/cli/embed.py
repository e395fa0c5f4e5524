"""Command ``train.py embed``: the features of every image of a folder, by the encoder of a run."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt
from rich.console import Console
from rich.progress import track

from fedssl.cli.errors import brief
from fedssl.data.clients import in_order
from fedssl.data.datasets import ImageSet, load_images
from fedssl.data.datasets.folders import unlabelled_among
from fedssl.data.datasets.listing import files_below
from fedssl.data.datasets.pixels import Decoding
from fedssl.data.datasets.source import Files, Loader
from fedssl.data.datasets.survey import account
from fedssl.utils.files import write_atomically
from linear_eval import TimmEncoder

DESCRIPTION = """
Writes the features of every image below a folder, with the names of the files, by the encoder of a run. Images are
normalised, scaled and made square as the encoder's config.json says.
"""
NPZ, PARQUET = ".npz", ".parquet"
CONFIG = "config.json"


def embed(arguments: list[str]) -> int:
    """Run the command.

    Args:
        arguments: Arguments after ``embed``.

    Returns:
        Exit status.

    Raises:
        ValueError: An argument cannot be used, a file is no readable image, or a feature is not finite. Nothing has
            been written.
        OSError: The disk refused; there is no half file.
    """
    options = _parse(arguments)
    out, root = Path(options.out), Path(options.images).absolute()
    _check_out(out, options.overwrite)
    folder, device = encoder_folder(Path(options.encoder)), _device(options.device)
    encoder, decoding = TimmEncoder(str(folder)), _decoding(folder, options)
    loader = Loader(_read_every_image, "folder of images")
    images = load_images(
        *("folder", "train", root, encoder.image_size, encoder.in_channels),
        in_memory=False,
        loader=loader,
        decoding=decoding,
        max_bad_files=options.data.max_bad_files,
    )
    print(f"{root}: {images.account}", file=sys.stderr)
    features = encode(encoder.to(device), images, options.batch_size)
    _write(out, [os.path.relpath(path, root) for path in images.files], features)
    print(f"{len(features):,} features of width {features.shape[1]} are in {out}")
    return 0


def encoder_folder(folder: Path) -> Path:
    """Find the folder with the image encoder: the folder itself, or ``encoder`` in that of a run.

    Raises:
        ValueError: There is none.
    """
    found = next((each for each in (folder, folder / "encoder") if (each / CONFIG).is_file()), None)
    if found is None:
        why = f"neither it nor its folder encoder has a {CONFIG}" if folder.is_dir() else "there is no such folder"
        raise ValueError(f"{folder} has no encoder ({why}): name the folder of a finished run, or its encoder")
    if "characters" in json.loads((found / CONFIG).read_text()):
        raise ValueError(f"{found} is an encoder of text: embed takes those of images")
    return found


def encode(encoder: TimmEncoder, images: ImageSet, batch_size: int) -> np.ndarray:
    """Encode images in their order, with a bar of the progress in a terminal.

    Returns:
        Features, float32 (N, D).

    Raises:
        ValueError: A file is no readable image, or a feature is not finite.
    """
    console = Console(file=sys.stderr)
    batches = track(in_order(images, batch_size), "encoding", console=console, disable=not console.is_terminal)
    features = encoder.encode(batches)
    if bad := int((~torch.isfinite(features)).any(dim=1).sum()):
        raise ValueError(f"{bad} of {len(features)} features hold NaN or inf: the encoder has diverged")
    return features.numpy()


def _parse(arguments: list[str]) -> Namespace:
    parser = ArgumentParser(prog="train.py embed", description=DESCRIPTION, exit_on_error=False)
    parser.add_argument("encoder", type=str, metavar="RUN", help="folder of a finished run, or of an encoder")
    parser.add_argument("images", type=str, metavar="IMAGES", help="folder of images, in folders of any depth and name")
    parser.add_argument("--out", type=str, required=True, help="file to write, .npz or .parquet (needs pyarrow)")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    parser.add_argument("--batch_size", type=PositiveInt, default=256, help="images at a time")
    parser.add_argument("--device", type=str | None, default=None, help="cpu or cuda; by default cuda if there is one")
    parser.add_argument(
        "--data.max_bad_files", type=NonNegativeInt, default=0, help="unreadable files to skip, at most"
    )
    for name, kind in (("fit", str), ("background", str), ("window", tuple[float, float])):
        parser.add_argument(f"--data.{name}", type=kind | None, default=None, help="as in fit; else as the run had it")
    try:
        return parser.parse_args(arguments)
    except ArgumentError as error:
        raise ValueError(brief(str(error))) from error


def _check_out(out: Path, overwrite: bool) -> None:
    if out.suffix not in (NPZ, PARQUET):
        raise ValueError(f"--out {out} must end in {NPZ} or {PARQUET}")
    if out.is_dir() or (out.exists() and not overwrite):
        raise ValueError(f"--out {out} exists: choose another name" + ", or --overwrite" * out.is_file())
    if out.suffix == PARQUET:
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise ValueError(f"--out {out} is Parquet: pip install pyarrow, or write {NPZ}") from error


def _device(name: str | None) -> torch.device:
    try:
        return torch.zeros((), device=name or ("cuda" if torch.cuda.is_available() else "cpu")).device
    except (RuntimeError, AssertionError) as error:  # of CUDA: without a driver, and not built in
        raise ValueError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error


def _decoding(folder: Path, options: Namespace) -> Decoding:
    """Return what the user wants of the conversion of files, and else what the run did."""
    noted = json.loads((folder / CONFIG).read_text()).get("decoding", {})
    wanted = {name: value for name, value in vars(options.data).items() if value is not None}
    given = {name: value for name, value in (noted | wanted).items() if name in vars(Decoding())}
    return Decoding(**given | ({"window": tuple(given["window"])} if given.get("window") else {}))


def _read_every_image(root: Path, split: str) -> Files:
    """Read all images below the root; its folders say nothing of classes or splits."""
    if not root.is_dir():
        raise ValueError(f"{root} is no folder: name the one that has the images, at any depth")
    files = unlabelled_among(files_below(root))
    if not files.paths:
        raise ValueError(f"{root} has no images ({account(files.others, 0, 0, Counter())})")
    return files


def _write(out: Path, names: list[str], features: np.ndarray) -> None:
    def write(temporary: Path) -> None:
        if out.suffix == NPZ:
            with temporary.open("wb") as file:
                np.savez(file, files=np.array(names), features=features)
            return
        import pyarrow
        from pyarrow import parquet

        columns = pyarrow.FixedSizeListArray.from_arrays(features.ravel(), features.shape[1])
        parquet.write_table(pyarrow.table({"file": names, "features": columns}), temporary)

    write_atomically(out, write)
