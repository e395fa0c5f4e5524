"""The texts by name, and the one function that loads any of them."""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets.utils import download_url

from fedssl.datasets.source import Source
from fedssl.datasets.toy_dialogue import toy_dialogue

TINY_SHAKESPEARE = Source(
    "tiny Shakespeare",
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "tinyshakespeare/input.txt",
)
TINY_SHAKESPEARE_MD5 = "6fb458f1232090904fb40fe944165e91"
TEXTS = ("toy_dialogue", "tiny_shakespeare")


def load_text(name: str, root: str | Path, download: bool) -> str:
    """Loads a text.

    Args:
        name: ``toy_dialogue``, made up on the spot; ``tiny_shakespeare``, 1.1 million characters of Shakespeare's plays
            (Karpathy's char-rnn); or a file below the root that ends in ``.txt``, in UTF-8.
        root: The folder of the data sets.
        download: Whether tiny Shakespeare may be downloaded; its checksum is verified.

    Raises:
        ValueError: The name is unknown, or the file is not in UTF-8.
        FileNotFoundError: The file is absent and could not be downloaded; says how to get it.
    """
    root = Path(root).expanduser().absolute()
    if name == "toy_dialogue":
        return toy_dialogue()
    if name == "tiny_shakespeare":
        return _read(_tiny_shakespeare(root, download))
    if not name.endswith(".txt"):
        raise ValueError(f"unknown text {name!r}: known are {', '.join(TEXTS)}, and names of files that end in .txt")
    if not (root / name).is_file():
        raise FileNotFoundError(f"there is no text {root / name}: set --data.root to its folder")
    return _read(root / name)


def _tiny_shakespeare(root: Path, download: bool) -> Path:
    path = root / TINY_SHAKESPEARE.layout
    if not path.is_file():
        url, folder = TINY_SHAKESPEARE.page, str(path.parent)
        TINY_SHAKESPEARE.fetch(
            path, root, download, lambda: download_url(url, folder, path.name, md5=TINY_SHAKESPEARE_MD5)
        )
    return path


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from error
