"""Counts the bytes that a step holds for backward."""

from __future__ import annotations

import weakref

import torch


class Ledger:
    """Bytes alive and the most there ever were.

    Attributes:
        now: Bytes alive.
        peak: The largest value of ``now``.
    """

    def __init__(self) -> None:
        self.now = 0
        self.peak = 0

    def hold(self, holder: object, nbytes: int) -> None:
        """Counts bytes for as long as ``holder`` lives."""
        self.now += nbytes
        self.peak = max(self.peak, self.now)
        weakref.finalize(holder, self._release, nbytes).atexit = False

    def hold_storage(self, storage: torch.UntypedStorage) -> None:
        """Counts a storage for as long as it lives."""
        self.hold(storage, storage.nbytes())

    def _release(self, nbytes: int) -> None:
        self.now -= nbytes
