"""Compressed updates: codes computed by hand, what they lose, and federations that train with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fedssl import BFloat16, EightBit, TopK
from fedssl.protocol.compression import Compression, pack_update, unpack_update
from layerwise import EndToEnd, LayerWise

RULES = [BFloat16(), EightBit(), TopK(0.25)]
CHANGE = torch.tensor([1.0, -2.0, 0.5, 0.0, 127.0])


def random_change(size: int = 1000, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def test_bfloat16_keeps_eight_bits_of_each_number() -> None:
    packed = BFloat16().pack(torch.tensor([1.0, 1.0 + 1 / 256, 1.0 + 1 / 64]))
    assert packed["values"].tolist() == [0x3F80, 0x3F80, 0x3F82], "1/256 is halfway and goes to the even one"
    assert BFloat16().unpack(packed, 3).tolist() == [1.0, 1.0, 1.0 + 1 / 64]


def test_eight_bits_are_steps_of_the_largest_change_of_a_block() -> None:
    packed = EightBit(block=4).pack(CHANGE)
    assert packed["scales"].tolist() == pytest.approx([2 / 127, 1.0])
    assert packed["values"].tolist() == [64, -127, 32, 0, 127], "63.5 and 31.75 are rounded"
    assert EightBit(block=4).unpack(packed, 5).tolist() == pytest.approx([128 / 127, -2.0, 64 / 127, 0.0, 127.0])


def test_a_block_without_change_stays_without() -> None:
    packed = EightBit(block=2).pack(torch.zeros(4))
    assert EightBit(block=2).unpack(packed, 4).tolist() == [0.0] * 4


def test_the_largest_changes_are_sent_with_their_places() -> None:
    packed = TopK(0.25).pack(CHANGE)
    assert packed["places"].tolist() == [1, 4], "a quarter of 5, rounded up"
    assert packed["values"].tolist() == [-2.0, 127.0]
    assert TopK(0.25).unpack(packed, 5).tolist() == [0.0, -2.0, 0.0, 0.0, 127.0]


@pytest.mark.parametrize(
    ("rule", "bytes_a_weight"), [(BFloat16(), 2), (EightBit(block=250), 1 + 4 / 250), (TopK(0.1), 0.8)], ids=repr
)
def test_bytes_of_a_code(rule: Compression, bytes_a_weight: float) -> None:
    assert sum(tensor.nbytes for tensor in rule.pack(random_change()).values()) == 1000 * bytes_a_weight


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_what_is_lost_is_sent_in_later_rounds(rule: Compression) -> None:
    """After any number of rounds the server has all changes but the last round's loss."""
    received = {"block.0": {"w": torch.zeros(4, 25), "count": torch.tensor(3)}, "tail": {"mean": torch.ones(2)}}
    total, lost, sum_of_changes = torch.zeros(100), {}, torch.zeros(100)
    for seed in range(12):
        change = random_change(100, seed)
        sum_of_changes += change
        trained = {"block.0": {"w": change.view(4, 25), "count": torch.tensor(4)}, "tail": {"mean": torch.zeros(2)}}
        sent, lost = pack_update(rule, trained, received, {"block.0/w"}, lost)
        arrived = unpack_update(rule, sent, received, {"block.0/w"})
        assert arrived["block.0"]["count"] == 4
        assert arrived["tail"]["mean"].tolist() == [0.0, 0.0], "statistics travel as they are"
        total += arrived["block.0"]["w"].flatten()
        torch.testing.assert_close(total + lost["block.0"], sum_of_changes, rtol=0, atol=1e-4)
    assert lost.keys() == {"block.0"}
    assert lost["block.0"].norm() < 3 * random_change(100).norm(), "errors do not add up"


@pytest.mark.parametrize(
    ("rule", "packed"),
    [
        (BFloat16(), {}),
        (BFloat16(), {"values": torch.zeros(9, dtype=torch.int16)}),
        (BFloat16(), {"values": torch.zeros(10)}),
        (EightBit(), {"values": torch.zeros(10, dtype=torch.int8)}),
        (EightBit(), {"values": torch.zeros(10, dtype=torch.int8), "scales": torch.ones(2)}),
        (TopK(0.2), {"places": torch.tensor([0, 10], dtype=torch.int32), "values": torch.ones(2)}),
        (TopK(0.2), {"places": torch.tensor([-1, 1], dtype=torch.int32), "values": torch.ones(2)}),
        (TopK(0.2), {"places": torch.tensor([0, 1]), "values": torch.ones(2)}),
        (TopK(0.2), {"places": torch.tensor([0], dtype=torch.int32), "values": torch.ones(1), "more": torch.ones(1)}),
    ],
)
def test_what_is_no_code_is_refused(rule: Compression, packed: dict[str, Tensor]) -> None:
    sent = {"tail": {f"packed.{name}": tensor for name, tensor in packed.items()}}
    with pytest.raises(ValueError, match="part tail: "):
        unpack_update(rule, sent, {"tail": {"w": torch.zeros(10)}}, {"tail/w"})


@pytest.mark.parametrize("fraction", [0.0, 0.6, -1.0, float("nan")])
def test_fractions_that_save_nothing_are_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=rf"fraction must be above 0 and at most 0\.5, got {fraction}"):
        TopK(fraction)


def test_an_empty_block_is_refused() -> None:
    with pytest.raises(ValueError, match="block must be 1 or more weights, got 0"):
        EightBit(0)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_federation_sends_less_and_comes_close(rule: Compression, make_world: Callable[..., Any]) -> None:
    plain, packed = make_world(LayerWise()), make_world(LayerWise(), compression=rule)
    sent = [sum(report.up_bytes for report in world.run(3)) for world in (plain, packed)]
    assert sent[1] < 0.7 * sent[0]
    assert packed.local.client_states[1].lost, "error feedback"
    worlds = (make_world(LayerWise()), plain, packed)
    start, exact, close = (torch.cat([t.float().flatten() for t in world.weights().values()]) for world in worlds)
    assert (close - exact).norm() < 0.8 * (exact - start).norm()


def test_a_client_that_sends_no_code_is_dropped(make_world: Callable[..., Any]) -> None:
    world = make_world(EndToEnd(), compression=TopK(), sizes=(8, 8))
    world.local.compression = None
    world.server.quorum = 0
    with pytest.raises(RuntimeError, match="its update cannot be unpacked: part stem: packed as "):
        world.run(1)


def test_a_run_goes_on_bit_for_bit(make_world: Callable[..., Any]) -> None:
    whole, first, second = (make_world(LayerWise(), rounds=6, compression=TopK()) for _ in range(3))
    whole.run(6)
    first.run(3)
    second.restore(first.checkpoint())
    second.run(3)
    for key, tensor in whole.weights().items():
        assert torch.equal(tensor, second.weights()[key]), key
