"""Survey of the user's own image files before training: which are read, which are not, and what is changed in them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fedssl.data.datasets.decoding import changes_of
from fedssl.data.datasets.pixels import Decoding
from fedssl.data.datasets.source import Files

logger = logging.getLogger(__name__)
BLOCK = 256
"""Files that a thread looks at in a row."""
NAMED = 3
"""Bad files that a message names."""


def survey(files: Files, channels: int, decoding: Decoding, max_bad_files: int) -> tuple[Files, str]:
    """Look at the header of every file, leave out those that are no images, and give account in one line.

    A file that is cut off has a good header. So all files are decoded once if bad ones may be left out.

    Args:
        files: Files of one split.
        channels: Channels that the images will have.
        decoding: How they will be decoded.
        max_bad_files: Largest number of files that may be left out.

    Returns:
        The good files, and the account; it has no names of files, as reports have it too.

    Raises:
        ValueError: More files are bad; the message names some.
    """

    def look(block: range) -> tuple[Counter[str], dict[int, str]]:
        changes, bad = Counter[str](), {}
        for position in block:
            try:
                changes.update(changes_of(files.paths[position], channels, decoding, whole=max_bad_files > 0))
            except ValueError as error:
                bad[position] = str(error)
        return changes, bad

    number = len(files.paths)
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(look, (range(at, min(at + BLOCK, number)) for at in range(0, number, BLOCK))))
    changes = sum((each for each, _ in found), Counter[str]())
    bad = {position: reason for _, each in found for position, reason in each.items()}
    _check_bad(list(bad.values()), number, max_bad_files)
    kept = np.delete(np.arange(number), list(bad))
    return files.only(kept) if bad else files, account(files.others, len(kept), len(bad), changes)


def account(others: Sequence[Path], read: int, bad: int, changes: Counter[str]) -> str:
    """Tell what was read, left out and changed, in one line.

    Args:
        others: Files that are no images by their names.
        read: Number of images.
        bad: Number of files that should be images and are none.
        changes: Number of images by what is changed in them.
    """
    said = [f"{len(others) + read + bad} files: {read} images read"]
    if others:
        endings = Counter(path.suffix.lower() or "without ending" for path in others).most_common()
        said.append(f"{len(others)} skipped (not images: {', '.join(f'{end} {n}' for end, n in endings)})")
    if bad:
        said.append(f"{bad} skipped as unreadable")
    return ", ".join([*said, *(f"{n} {change}" for change, n in sorted(changes.items()))])


def _check_bad(reasons: list[str], number: int, allowed: int) -> None:
    named = "; ".join(reasons[:NAMED]) + (f"; and {len(reasons) - NAMED} more" if len(reasons) > NAMED else "")
    if len(reasons) > allowed:
        raise ValueError(
            f"{named}. Of {number} files {len(reasons)} cannot be read: take them out, or skip them with "
            f"--data.max_bad_files {len(reasons)}"
        )
    if reasons:
        logger.warning("skipped: %s", named)
