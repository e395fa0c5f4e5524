"""Activations in few bits."""

from pathlib import Path

import pytest
import torch

from fedssl.client.bank import Rows, bytes_of_rows


def activations(count: int, *shape: int) -> torch.Tensor:
    return 3 * torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mapped", [False, True])
def test_half_precision_rounds_once(mapped: bool, tmp_path: Path) -> None:
    values = activations(6, 5, 4)
    rows = Rows(6, (5, 4), 16, tmp_path / "maps" if mapped else None)
    rows.write(0, values[:4])
    rows.write(4, values[4:])
    order = torch.tensor([5, 0, 0, 3])
    assert torch.equal(rows.read(order), values[order].half().float())


def test_what_half_precision_cannot_hold_is_refused() -> None:
    large = torch.tensor([[[65504.0, -1e5]]])
    with pytest.raises(ValueError, match=r"an activation of 100000 is beyond the 65504 .*set bank\.bits 8"):
        Rows(1, (1, 2), 16, None).write(0, large)
    rows = Rows(1, (1, 2), 8, None)
    rows.write(0, large)
    torch.testing.assert_close(rows.read(torch.tensor([0])), large)


@pytest.mark.parametrize("shape", [(5, 4), (3, 2, 2)])
def test_eight_bits_are_off_by_half_a_step_of_their_token_or_channel(shape: tuple[int, ...]) -> None:
    values = activations(6, *shape)
    rows = Rows(6, shape, 8, None)
    rows.write(0, values)
    groups = values.flatten(2)
    half_step = (groups.amax(2) - groups.amin(2)) / 255 / 2
    error = (rows.read(torch.arange(6)) - values).abs().flatten(2).amax(2)
    assert (error <= half_step * (1 + 1e-4) + 1e-6).all()
    assert error.max() > 0


def test_eight_bits_by_hand() -> None:
    """Least 0, largest 51: a step of 0.2."""
    rows = Rows(1, (1, 4), 8, None)
    rows.write(0, torch.tensor([[[0.0, 51.0, 10.05, 0.29]]]))
    torch.testing.assert_close(rows.read(torch.tensor([0])), torch.tensor([[[0.0, 51.0, 10.0, 0.2]]]))


def test_a_constant_row_is_exact() -> None:
    rows = Rows(1, (2, 3), 8, None)
    rows.write(0, torch.full((1, 2, 3), -1.7))
    assert torch.equal(rows.read(torch.tensor([0])), torch.full((1, 2, 3), -1.7))


@pytest.mark.parametrize(("bits", "expected"), [(16, 7 * 5 * 4 * 2), (8, 7 * (5 * 4 + 5 * 8))])
def test_bytes(bits: int, expected: int) -> None:
    rows = Rows(7, (5, 4), bits, None)
    tables = [table for table in (rows._values, rows._scales) if table is not None]
    assert bytes_of_rows(7, (5, 4), bits) == sum(t.numel() * t.element_size() for t in tables) == expected


@pytest.mark.parametrize("bits", [16, 8])
def test_files_disappear(bits: int, tmp_path: Path) -> None:
    rows = Rows(4, (2, 3), bits, tmp_path)
    rows.write(0, torch.ones(4, 2, 3))
    assert not list(tmp_path.iterdir())
    assert rows.read(torch.tensor([3])).sum() == 6


def test_a_full_disk_is_named_beforehand(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"has .* left, and a bank needs 4096 TiB there"):
        Rows(2**50, (2, 1), 16, tmp_path)
