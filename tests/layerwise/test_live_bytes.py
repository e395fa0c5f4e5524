"""Bytes alive, by hand and against the allocator."""

import torch
from torch.profiler import ProfilerActivity, profile

from layerwise import LiveBytes, tensor_bytes


def test_by_hand() -> None:
    resident = torch.zeros(100)
    with LiveBytes([resident]) as live:
        assert live.now == 400
        first = resident + 1
        second = first * 2
        assert live.now == 1200
        del first
        assert live.now == 800
        view = second[:10]
        assert live.now == 800
        del second, view
        assert live.now == 400
        resident.add_(1)
    assert (live.now, live.peak) == (400, 1200)


def test_the_peak_is_that_of_the_allocator() -> None:
    layer, images = torch.nn.Linear(64, 256), torch.randn(32, 64)

    def step() -> None:
        torch.nn.functional.gelu(layer(images)).square().sum().backward()
        layer.zero_grad(set_to_none=True)

    step()
    with LiveBytes([*layer.parameters(), images]) as live:
        step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    now = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    assert abs(live.peak - tensor_bytes([*layer.parameters(), images]) - peak) <= 0.05 * peak


def test_distinct_storages_count_once() -> None:
    tensor = torch.zeros(10, 10)
    assert tensor_bytes([tensor, tensor[0], tensor.T, torch.zeros(3, dtype=torch.int64)]) == 400 + 24
