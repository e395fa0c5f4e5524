"""How many layers each device trains, and one depth for all."""

from itertools import product
from typing import Any

import pytest

from fedssl.costs.prediction import Need
from fedssl.devices import DeviceProfile, Fleet, choose_variant, device_extents, fleet_stages, shortage
from layerwise import AllSmall, EndToEnd, LastLayers, Stage

BLOCK, FROZEN = 100, 10


def need(stage: Stage, images: int) -> Need:
    """A trained block takes ten times the memory of a frozen one, and three times its operations."""
    frozen, trained = len(stage.frozen), len(stage.trained)
    return Need(FROZEN * frozen + BLOCK * trained, images * (frozen + 3 * trained), 50 * trained)


def fleet_of(*profiles: DeviceProfile) -> Fleet:
    return Fleet(list(profiles), [8] * len(profiles), need, None)  # type: ignore[arg-type]


def memory(*sizes: float) -> Fleet:
    return fleet_of(*(DeviceProfile(memory_bytes=size) for size in sizes))


def brute_force(extents: list[list[int]]) -> int | None:
    able = [c for c in range(len(extents[0])) if any(counts[c] for counts in extents)]
    best, chosen = -1.0, None
    for index, each in enumerate(extents):
        counts = [each[c] for c in able]
        if counts and min(counts) > 0 and sum(counts) / len(counts) >= best:
            best, chosen = sum(counts) / len(counts), index
    return chosen


def test_the_largest_average_by_brute_force() -> None:
    for first, second in product(product(range(3), repeat=3), product(range(4), repeat=3)):
        extents = [list(first), list(second)]
        expected = brute_force(extents)
        if expected is None:
            with pytest.raises(ValueError, match=r"even the least of 2|leaves out a device"):
                choose_variant(extents)
        else:
            assert choose_variant(extents) == expected


def test_each_device_trains_the_most_that_fits() -> None:
    """By brute force over depths, trained layers and three limits."""
    scheme, depths = LastLayers([2, 4, 6]), [2, 4, 6]
    limits = {"memory_bytes": [119, 120, 330, 600], "upload_limit_bytes": [49, 50, 175], "macs_limit": [47, 80, 1e9]}
    profiles = [DeviceProfile(**dict(zip(limits, each, strict=True))) for each in product(*limits.values())]
    found = dict(zip(depths, device_extents(scheme, scheme.variants(6, 1), fleet_of(*profiles)), strict=True))
    for depth, (client, profile) in product(depths, enumerate(profiles)):
        fits = [
            t
            for t in range(1, depth + 1)
            if FROZEN * (depth - t) + BLOCK * t <= profile.memory_bytes
            and 50 * t <= profile.upload_limit_bytes
            and 8 * (depth + 2 * t) <= profile.macs_limit
        ]
        assert found[depth][client] == max(fits, default=0)


@pytest.mark.parametrize(
    ("sizes", "depth"),
    [((600, 600), 6), ((110, 110), 2), ((1e9, 125), 2), ((1e9, 130), 4), ((1e9, 109), 4), ((200,), 2)],
)
def test_the_depth_of_a_fleet(sizes: tuple[float, ...], depth: int) -> None:
    (stage,) = fleet_stages(LastLayers([2, 4]) if depth < 6 else LastLayers([2, 4, 6]), 6, 3, memory(*sizes))
    assert stage.depth == depth


@pytest.mark.parametrize(("sizes", "depth"), [((600, 600), 6), ((1e9, 400), 4), ((1e9, 230, 100), 2)])
def test_all_small_is_the_deepest_that_all_can_train_whole(sizes: tuple[float, ...], depth: int) -> None:
    assert fleet_stages(AllSmall([2, 4, 6]), 6, 3, memory(*sizes)) == EndToEnd().stages(depth, 3)


def test_without_devices_the_largest_depth_is_taken() -> None:
    assert fleet_stages(LastLayers([2, 4]), 6, 3, None)[0].depth == 4
    assert fleet_stages(LastLayers(), 6, 3, memory(1e9))[0].depth == 6


def test_what_nothing_meets_gives_the_missing_numbers() -> None:
    device = DeviceProfile(memory_bytes=100, upload_limit_bytes=45, macs_limit=30)
    with pytest.raises(ValueError, match=r"lacks 10 B and 5 B of upload a round and 2 multiply-accumulates a round;"):
        fleet_stages(LastLayers([2, 4]), 6, 3, fleet_of(device, device))


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({}, "nothing"),
        ({"memory_bytes": 100}, "20 B"),
        ({"upload_limit_bytes": 48, "macs_limit": 10**9}, "2 B of upload a round"),
    ],
)
def test_what_is_missing(limits: dict[str, Any], text: str) -> None:
    missing = shortage(Need(120, 5000, 50), DeviceProfile(**limits))
    assert str(missing) == text
    assert bool(missing) == (text != "nothing")
