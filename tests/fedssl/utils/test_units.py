import math

import pytest

from fedssl.utils.units import format_bytes, parse_bytes, parse_rate


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512MiB", 512 * 2**20),
        ("1.5 GB", 1_500_000_000),
        ("1B", 1),
        (" 64 kb ", 64_000),
        ("3TiB", 3 * 2**40),
        ("2KiB", 2048),
        (".5GiB", 2**29),
        ("0.1GB", 100_000_000),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["512", "-1MiB", "0MB", "0.2B", "nan", "nanMB", "infGB", "", "MiB", "1e3MB", "5 apples", "1MiB2", "1,5GB"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a size: .*such as 512MiB, 1.5GB") as caught:
        parse_bytes(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (2**20, "1 MiB"),
        (512 * 2**20, "512 MiB"),
        (1000 * 2**20, "0.98 GiB"),
        (1.5 * 2**30, "1.5 GiB"),
        (12.34 * 2**20, "12.3 MiB"),
        (5000 * 2**40, "5000 TiB"),
        (math.inf, "no limit"),
    ],
)
def test_sizes_for_people(size: float, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize("size", [-1, math.nan])
def test_no_size_for_people(size: float) -> None:
    with pytest.raises(ValueError, match="at least 0 bytes"):
        format_bytes(size)


@pytest.mark.parametrize("text", ["512 MiB", "1.5 GiB", "17 B"])
def test_a_size_for_people_can_be_read_again(text: str) -> None:
    assert format_bytes(parse_bytes(text)) == text


@pytest.mark.parametrize(
    ("value", "rate"),
    [
        ("20 Mbit/s", 2_500_000),
        ("2.5MB/s", 2_500_000),
        ("8kbit/s", 1000),
        ("1 MiB/s", 2**20),
        (100, 100),
        ("100", 100),
        ("1e6", 1e6),
        (math.inf, math.inf),
    ],
)
def test_rates(value: float | str, rate: float) -> None:
    assert parse_rate(value) == rate


@pytest.mark.parametrize("value", [0, -1, math.nan, True, "20 Mb/s", "20MB", "0 MB/s", "-2MB/s", "fast", ""])
def test_what_is_no_rate(value: float | str) -> None:
    with pytest.raises(ValueError, match="is not a bandwidth"):
        parse_rate(value)
