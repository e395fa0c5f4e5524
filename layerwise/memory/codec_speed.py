"""How long compression takes on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from layerwise.memory.codec import compress
from layerwise.memory.layout import Layout

SAMPLE = Layout(4096, 128, 1)
SMALL = Layout(256, 4, 1)


@dataclass(frozen=True)
class Speed:
    """Time of an action on N elements: ``call + N * element`` seconds.

    Args:
        call: Seconds a call.
        element: Seconds an element.
    """

    call: float
    element: float

    def seconds(self, numel: int) -> float:
        """Time for ``numel`` elements."""
        return self.call + numel * self.element


@dataclass(frozen=True)
class CodecSpeed:
    """Times of compressing and restoring.

    Args:
        pack: Of :func:`compress`.
        restore: Of :meth:`Packed.restore`.
    """

    pack: Speed
    restore: Speed


NO_TIME = CodecSpeed(Speed(0.0, 0.0), Speed(0.0, 0.0))


def measure_codec(dtype: torch.dtype, device: torch.device, clock: Callable[[], float]) -> CodecSpeed:
    """Times the codec at 4 bits, where it has most to do; other widths count as equally slow.

    Args:
        dtype: Of the activations.
        device: Of the activations.
        clock: Gives the time in seconds, with the device's work done.
    """
    generator = torch.Generator(device).manual_seed(0)
    pack, restore = [], []
    for layout in (SMALL, SAMPLE):
        block = torch.randn(layout.numel, generator=generator, device=device).to(dtype)
        pack.append(_fastest(partial(compress, block, layout, 4, generator), clock))
        restore.append(_fastest(compress(block, layout, 4, generator).restore, clock))
    return CodecSpeed(_line(*pack), _line(*restore))


def _fastest(action: Callable[[], object], clock: Callable[[], float], repeats: int = 3) -> float:
    times = []
    for _ in range(repeats):
        start = clock()
        action()
        times.append(clock() - start)
    return min(times)


def _line(small: float, large: float) -> Speed:
    return Speed(small, max(0.0, large - small) / (SAMPLE.numel - SMALL.numel))
