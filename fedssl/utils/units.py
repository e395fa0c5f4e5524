"""Sizes and rates with units: parsing and formatting."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

PREFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
BINARY_PREFIXES = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
MIB = BINARY_PREFIXES["mi"]
FACTORS = PREFIXES | BINARY_PREFIXES
SIZE = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([kmgt]i?)?b\s*", re.IGNORECASE)
RATE = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([KkMGT]i?)?(B|bit)/s\s*")


def parse_bytes(text: str) -> int:
    """Parse a size such as ``512MiB``, ``1.5 GB`` or ``4096 B`` to bytes.

    KB, MB, GB and TB are powers of 1000, KiB, MiB, GiB and TiB powers of 1024. Upper and lower case are the same.

    Raises:
        ValueError: The text has no unit, is not above zero, or is no size at all.
    """
    match = SIZE.fullmatch(str(text))
    size = int(Decimal(match[1]) * FACTORS[(match[2] or "").lower()]) if match else 0
    if size < 1:
        raise ValueError(
            f"{str(text)!r} is not a size: a number above zero with a unit is needed, such as 512MiB, 1.5GB or 800KB"
        )
    return size


def format_bytes(size: float) -> str:
    """Format a size with three or four digits and a binary unit, such as ``512 MiB``; ``no limit`` if infinite.

    Raises:
        ValueError: The size is negative or not a number.
    """
    if not size >= 0:
        raise ValueError(f"a size must be at least 0 bytes, got {size}")
    if math.isinf(size):
        return "no limit"
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    value, unit = float(size), 0
    while value >= 999.5 and unit < len(units) - 1:
        value, unit = value / 1024, unit + 1
    digits = 0 if unit == 0 or value >= 100 else 1 if value >= 10 else 2
    number = f"{value:.{digits}f}"
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {units[unit]}"


def parse_rate(value: float | str) -> float:
    """Parse a bandwidth to bytes a second: a number, or a text such as ``20 Mbit/s`` or ``2.5MB/s``.

    Prefixes are read as by ``parse_bytes``. Only ``B`` (bytes) and ``bit`` are units; the ambiguous ``Mb/s`` is
    refused.

    Raises:
        ValueError: The value is not above zero, or no bandwidth at all. ``inf`` is allowed and takes no time.
    """
    match = RATE.fullmatch(value) if isinstance(value, str) else None
    if match:
        rate = float(Decimal(match[1]) * FACTORS[(match[2] or "").lower()]) / (1 if match[3] == "B" else 8)
    else:
        rate = as_number(value)
    if not rate > 0:
        raise ValueError(
            f"{value!r} is not a bandwidth: a number of bytes a second above zero is needed, or one with a unit such "
            "as '20 Mbit/s' or '2.5MB/s'"
        )
    return rate


def as_number(value: Any) -> float:
    """Convert a number or its text to a float; anything else, a boolean too, to NaN."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan
