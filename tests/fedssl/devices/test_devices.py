import math
from pathlib import Path
from typing import Any

import pytest

from fedssl import DeviceClasses, DeviceFile, RandomDevices
from fedssl.devices import DeviceProfile

PHONE = {"name": "phone", "memory": "2GiB", "macs_per_second": "5e10", "download": "20 Mbit/s", "upload": "1MB/s"}
YAML = """
devices:
  - {name: phone, memory: 2GiB, macs_per_second: 5e10, download: 20 Mbit/s, upload: 1MB/s, count: 2}
  - {name: camera, memory: 256MiB, availability: [0.2, 0.9], count: 1}
"""
CSV = """name,memory,macs_per_second,download,upload,availability,count
phone,2GiB,5e10,20 Mbit/s,1MB/s,,2
camera,256MiB,,,,0.2 0.9,1
"""


def test_seconds_by_hand() -> None:
    device = DeviceProfile("d", macs_per_second=100, down_bytes_per_second=10, up_bytes_per_second=5)
    assert device.seconds(down_bytes=20, macs=300, up_bytes=20) == 2 + 3 + 4
    assert DeviceProfile().seconds(1e12, 1e15, 1e12) == 0


def test_availability_over_the_day() -> None:
    device = DeviceProfile(availability=(0.1, 0.2, 0.3, 0.4))
    hours = [0, 5.99, 6, 13, 23.99, 24, 30]
    assert [device.available(hour * 3600) for hour in hours] == [0.1, 0.1, 0.2, 0.3, 0.4, 0.1, 0.2]
    assert DeviceProfile(availability=0.5).available(1e9) == 0.5


@pytest.mark.parametrize(
    "settings",
    [
        {"memory_bytes": 0},
        {"macs_per_second": -1.0},
        {"down_bytes_per_second": math.nan},
        {"up_bytes_per_second": 0.0},
        {"availability": 1.1},
        {"availability": 0.0},
        {"availability": (0.0, 0.0)},
        {"availability": (0.5, -0.1)},
        {"availability": ()},
        {"availability": math.nan},
    ],
)
def test_impossible_devices(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        DeviceProfile(**settings)


@pytest.mark.parametrize(("name", "text"), [("fleet.yaml", YAML), ("fleet.csv", CSV)])
def test_devices_from_a_file(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    phone = DeviceProfile("phone", 2**31, 5e10, 2.5e6, 1e6)
    camera = DeviceProfile("camera", 2**28, availability=(0.2, 0.9))
    assert DeviceFile(str(tmp_path / name)).profiles(3, seed=0) == [phone, phone, camera]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("fleet.txt", "", r"must end in \.yaml"),
        ("fleet.yaml", "devices: [", "is not YAML"),
        ("fleet.yaml", "[]", "one key 'devices'"),
        ("fleet.yaml", "devices: []", "at least one class"),
        ("fleet.yaml", "devices: [phone]", "class 1 of the devices must have keys and values"),
        ("fleet.yaml", "devices: [{memry: 1GB}]", "memry of device 'device 1': unknown key; allowed: name, memory"),
        ("fleet.csv", "name,dowload\nphone,1\n", "dowload of device 'phone': unknown key; allowed: .*download"),
        ("fleet.csv", "name,memory\nphone,512\n", "memory of device 'phone': '512' is not a size"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        DeviceFile(str(tmp_path / name))
    assert name in str(caught.value)


def test_a_missing_file() -> None:
    with pytest.raises(ValueError, match=r"absent\.yaml: no such file"):
        DeviceFile("absent.yaml")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([{"count": 0}], "count of device 'device 1': a whole number"),
        ([{"count": 1.5}], "a whole number"),
        ([{"share": 0}], "a fraction above 0"),
        ([{"share": 0.5}], "add up to 1, got 0.5"),
        ([{"share": 0.5}, {"count": 3}], "do not mix"),
        ([{"share": 0.5, "count": 3}], "count and share of device 'device 1': give one of them"),
        ([{"macs_per_second": "quick"}], "a number is needed, got 'quick'"),
        ([{"macs_per_second": -5}], "must be above 0"),
        ([{"upload": "2 Mb/s"}], "is not a bandwidth"),
        ([{"availability": 2}], "probability"),
        ([{"availability": []}], "probability"),
        ([{"cores": 2}], "unknown key; allowed: name, memory"),
    ],
)
def test_bad_classes(classes: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeviceClasses(classes)


def test_counts_must_fit_the_clients() -> None:
    with pytest.raises(ValueError, match="count 3 clients, but there are 4"):
        DeviceClasses([PHONE | {"count": 3}]).profiles(4, seed=0)


def test_shares_become_counts_by_largest_remainder() -> None:
    classes = [{"name": "a", "share": 0.5}, {"name": "b", "share": 0.26}, {"name": "c", "share": 0.24}]
    names = [device.name for device in DeviceClasses(classes).profiles(7, seed=0)]
    assert names == ["a"] * 3 + ["b"] * 2 + ["c"] * 2  # 3.5, 1.82, 1.68


def test_thirds_may_be_written_out() -> None:
    assert len(DeviceClasses([{"share": 0.3333333}] * 3).profiles(10, seed=0)) == 10


def test_a_device_without_anything_is_no_limit_at_all() -> None:
    assert DeviceClasses([{"name": "server"}]).profiles(1, seed=0) == [DeviceProfile("server")]


def test_random_devices() -> None:
    source = RandomDevices(["256MiB", "1GiB"], [1e9, 1e10], ["1 Mbit/s", 1e6], None, [0.2, 0.4])
    devices = source.profiles(200, seed=1)
    assert devices == source.profiles(200, seed=1)
    assert devices[:5] == source.profiles(5, seed=1)
    assert devices[:5] != source.profiles(5, seed=2)[:5]
    memories = sorted(device.memory_bytes for device in devices)
    assert 2**28 <= memories[0] < memories[-1] <= 2**30
    assert memories[100] == pytest.approx(2**29, rel=0.15)  # the geometric mean
    assert all(1e9 <= d.macs_per_second <= 1e10 and 0.2 <= d.available(0) <= 0.4 for d in devices)
    assert all(d.up_bytes_per_second == math.inf for d in devices)


def test_a_uniform_median_is_the_middle() -> None:
    devices = RandomDevices(["1GB", "3GB"], distribution="uniform").profiles(200, seed=0)
    assert sorted(device.memory_bytes for device in devices)[100] == pytest.approx(2e9, rel=0.1)


def test_one_range_does_not_change_what_is_drawn_for_another() -> None:
    alone, both = RandomDevices(upload=[1, 9]), RandomDevices(memory=["1GB", "2GB"], upload=[1, 9])
    rates = [[d.up_bytes_per_second for d in source.profiles(3, seed=0)] for source in (alone, both)]
    assert rates[0] == rates[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"memory": ["1GB"]}, "a lowest and a highest"),
        ({"memory": ["2GB", "1GB"]}, "ascending order"),
        ({"memory": ["1", "1GB"]}, "is not a size"),
        ({"macs_per_second": [0, 1]}, "above 0"),
        ({"download": [1, math.inf]}, "finite"),
        ({"availability": [0.5, 1.5]}, "at most 1"),
        ({"distribution": "normal"}, "'uniform' or 'log-uniform', got 'normal'"),
    ],
)
def test_bad_ranges(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandomDevices(**settings)


def test_probabilities_may_be_written_as_text() -> None:
    assert RandomDevices(availability=["0.2", "0.9"]).profiles(1, 0)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="availability must be a probability of at most 1"):
        RandomDevices(availability=["0.2", "2"])  # type: ignore[list-item]
