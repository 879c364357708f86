"""Histories and kills for tests that stop a managed disk's store at any step."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from siterig.azure_emu.disks.store import ManagedDiskStore
from siterig.azure_emu.disks.view import open_view
from siterig.azure_emu.scrub.scrubber import scrub
from tests.support.disks.disk_history import SIZE_BYTES, Packed
from tests.support.stores.managed_disk import assert_same, site, whole


class Killed(BaseException):
    """A simulated kill; it is not an ``Exception``, so that error handlers do not catch it."""


def forget_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn off fsync, as a kill loses no written bytes; tests/crash/test_store_power_loss.py simulates power losses."""
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda _fd: None)


class Life:
    """A disk with an initial replication, logs, growth, a resync and more logs, and its expected bytes by position."""

    def __init__(self, tmp_path: Path, seed: int) -> None:
        self.disk = site(tmp_path, seed)
        disk = self.disk
        disk.scribble(20)
        disk.close_log()
        self.parts: list[Packed] = disk.sync()
        self.valid = [disk.position]
        for number in range(6):
            disk.scribble(12)
            if number == 2:
                disk.resize(SIZE_BYTES + 2560)
            self._point(number)
        old = bytes(disk.data)
        disk.scribble(5)
        disk.new_generation()
        disk.resize(SIZE_BYTES + 40_960)
        disk.scribble(3)
        disk.close_log()
        self.parts += disk.sync(against=old)
        self.valid.append(disk.position)
        for number in range(6, 10):
            disk.scribble(12)
            self._point(number)

    def _point(self, number: int) -> None:
        first = self.disk.position
        self.disk.tag(str(number))
        self.parts.append(self.disk.close_log())
        self.valid += [position for position in self.disk.states if first - 12 < position]

    def check(self, store: ManagedDiskStore, what: str, least: int) -> None:
        """Check that each position from the oldest one on reads as the disk was; the oldest one is at most ``least``."""
        assert store.oldest_position <= least, what
        for position in sorted(set(self.valid)):
            if store.oldest_position <= position <= store.watermark().complete_position:
                assert_same(whole(open_view(store.folder, position)), self.disk.states[position], f"{what}, {position}")
        assert list(scrub(store.folder)) == [], what
