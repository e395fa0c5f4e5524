"""What a client keeps on its disk."""

import os
import time
from pathlib import Path

import pytest
import torch

from fedssl.flower.cache import ClientCache
from fedssl.protocol.messages import content_id

OLD, NEW = ({"w": torch.full((3,), value), "n": torch.tensor(2)} for value in (1.0, 2.0))


def make(folder: Path, run: str = "ab") -> ClientCache:
    return ClientCache(folder, 16 * run, 0)


def test_parts_are_stored_once_and_replaced(tmp_path: Path) -> None:
    cache = make(tmp_path)
    for tensors in (OLD, NEW):
        cache.put("block.1", content_id(tensors), tensors)
    assert make(tmp_path).held() == {"block.1": content_id(NEW)}
    assert cache.get("block.1", content_id(OLD)) is None
    found = cache.get("block.1", content_id(NEW))
    assert found is not None
    assert content_id(found) == content_id(NEW)


def test_damaged_parts_are_absent(tmp_path: Path) -> None:
    cache, name = make(tmp_path), content_id(OLD)
    for damage in (lambda data: data[:-4], lambda data: data[:-1] + b"\x01"):
        cache.put("stem", name, OLD)
        file = next(cache.folder.glob("stem@*"))
        file.write_bytes(damage(file.read_bytes()))
        assert cache.get("stem", name) is None
        assert cache.held() == {}


def test_names_cannot_leave_the_folder(tmp_path: Path) -> None:
    cache = make(tmp_path)
    for name in ("../stem", "a/b", ""):
        with pytest.raises(ValueError, match="is no part"):
            cache.put(name, content_id(OLD), OLD)
    with pytest.raises(ValueError, match="not those that their content id promises"):
        cache.put("stem", content_id(NEW), OLD)
    with pytest.raises(ValueError, match="run id"):
        make(tmp_path, "../ab")


def test_memories_go_back_some_rounds(tmp_path: Path) -> None:
    cache = make(tmp_path)
    for round_ in range(6):
        cache.remember(round_, {"round": round_, "w": torch.ones(1)})
    assert [(cache.memory(at) or {}).get("round") for at in (9, 6, 5, 4, 3)] == [5, 5, 4, 3, None]


def test_a_damaged_memory_is_forgotten_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Else every later round of the client would fail; what it remembered before is better than nothing."""
    cache = make(tmp_path)
    for round_ in (1, 2):
        cache.remember(round_, {"round": round_, "w": torch.ones(64)})
    damaged = cache.folder / "000002.memory"
    content = bytearray(damaged.read_bytes())
    content[content.find(torch.ones(64).numpy().tobytes()) + 9] ^= 4
    damaged.write_bytes(content)
    assert (cache.memory(3) or {}).get("round") == 1
    assert f"the memory {damaged} is forgotten: it is damaged" in caplog.text
    (cache.folder / "000001.memory").write_bytes(b"PK")
    assert cache.memory(3) is None
    assert not list(cache.folder.glob("*.memory"))


def test_old_runs_are_forgotten(tmp_path: Path) -> None:
    for age, run in enumerate(("a5", "a4", "a3", "a2", "a1")):
        (tmp_path / (16 * run)).mkdir()
        # Made within one tick of the file system's clock, they would be equally old.
        os.utime(tmp_path / (16 * run), (0, time.time() - 60 * (age + 1)))
    (tmp_path / "cafe").mkdir()
    (tmp_path / (16 * "b1")).symlink_to("removed by another client meanwhile")
    make(tmp_path, "a6")
    assert sorted(path.name for path in tmp_path.iterdir() if path.exists()) == [
        16 * "a4",
        16 * "a5",
        16 * "a6",
        "cafe",
    ]
