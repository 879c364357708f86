"""An applier with a cache account and a vault in memory."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import trio

from siterig.azure_emu.applier.applier import Applier
from siterig.azure_emu.applier.service import RecoveryService
from siterig.azure_emu.contracts.reports import ApplierReports, SkippedBlob
from siterig.azure_emu.disks.view import open_view
from siterig.blockfs.changelog.tags import TagSeen
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.waits import Waits
from siterig.blockfs.transfer.cache_account import CacheAccount
from siterig.blockfs.transfer.part_name import Listing, PartName, Watermark
from tests.support.disks.disk_history import DISK_ID, Packed, SiteDisk

Parts = list[PartName]


class FakeCache(CacheAccount):
    """A cache account in memory; every call raises ``failure`` while that is set."""

    def __init__(self) -> None:
        self.blobs: dict[PartName, bytes] = {}
        self.failure: RigError | None = None
        self.deleted: Parts = []
        self.gets: Parts = []
        self.forgotten: set[PartName] = set()
        self.unreadable: set[PartName] = set()
        self.foreign: list[str] = []

    def _check(self) -> None:
        if self.failure:
            raise self.failure

    async def put(self, part: PartName, data: bytes, *, replace: bool = False) -> bool:
        await trio.lowlevel.checkpoint()
        self._check()
        if replace:
            self.blobs[part] = data
        return self.blobs.setdefault(part, data) is data

    async def list(self, disk_id: str) -> Listing:
        await trio.lowlevel.checkpoint()
        self._check()
        blobs = [(part.blob(), len(data)) for part, data in self.blobs.items() if part.disk_id == disk_id]
        return Listing.of(disk_id, blobs + [(name, 9) for name in self.foreign])

    async def get(self, part: PartName) -> bytes:
        await trio.lowlevel.checkpoint()
        self._check()
        self.gets.append(part)
        if part in self.forgotten:
            raise RigError(Code.PartNotFound, f"{part.blob()} is not there")
        if part in self.unreadable:
            raise RigError(Code.PartUnreadable, f"part {part.blob()} cannot be read", recoverable=True)
        return self.blobs[part]

    async def delete(self, part: PartName) -> None:
        await trio.lowlevel.checkpoint()
        self._check()
        if self.blobs.pop(part, None) is not None:
            self.deleted.append(part)

    def hold(self, parts: Sequence[Packed]) -> None:
        """Add parts without a call."""
        self.blobs.update(parts)


class FakeVault(ApplierReports):
    """Collects reports; ``failure``, while set, is raised for reports of applied parts."""

    def __init__(self, cache: FakeCache) -> None:
        self.cache = cache
        self.disks = [DISK_ID]
        self.failure: RigError | None = None
        self.away: RigError | None = None
        self.marks: list[Watermark] = []
        self.later: Watermark | None = None
        self.older: list[Watermark] = []
        self.tags: list[TagSeen] = []
        self.failed: list[tuple[str, str]] = []
        self.blobs_at_report: list[int] = []
        self.seen: list[tuple[int, list[str]]] = []
        self.asked: list[tuple[float, list[str]]] = []
        self.asked_temporary: list[bool] = []
        self.rounds = 0
        self.changed = trio.Event()

    def _wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def store_older(self, *, watermark: Watermark) -> None:
        self.older.append(watermark)

    async def applied(
        self, *, watermark: Watermark, tags: list[TagSeen], waiting_bytes: int | None = None
    ) -> Watermark | None:
        if self.failure:
            raise self.failure
        if waiting_bytes is not None:
            self.seen.append((waiting_bytes, []))
        self.marks.append(watermark)
        self.tags += tags
        self.blobs_at_report.append(len(self.cache.blobs))
        self._wake()
        return self.later if self.later is not None and self.later.generation >= watermark.generation else None

    async def apply_failed(self, *, disk_id: str, code: str, message: str, recoverable: bool) -> None:
        assert disk_id == DISK_ID
        self.failed.append((code, message))
        self._wake()

    async def account_seen(
        self, *, disk_id: str, waiting_bytes: int, skipped: list[SkippedBlob], skipped_count: int
    ) -> None:
        assert skipped_count == len(skipped)
        self.seen.append((waiting_bytes, [blob.name for blob in skipped]))

    async def send_again(self, *, disk_id: str, parts: list[str], is_temporary: bool) -> None:
        self.asked.append((trio.current_time(), parts))
        self.asked_temporary.append(is_temporary)
        self._wake()

    async def wait_asked(self, count: int = 1) -> None:
        """Wait until so many requests to send parts again have come."""
        while len(self.asked) < count:
            await self.changed.wait()

    async def replicating_disks(self) -> list[str]:
        self.rounds += 1
        self._wake()
        if self.away:
            raise self.away
        return self.disks

    async def wait_rounds(self, count: int) -> None:
        """Wait until ``count`` rounds that begin from now on have ended; a mock clock does not wait for threads."""
        until = self.rounds + count + 1
        while self.rounds < until:
            await self.changed.wait()

    async def wait_failed(self) -> None:
        """Wait for the report of a failure."""
        while not self.failed:
            await self.changed.wait()

    async def wait_position(self, position: int) -> None:
        """Wait until a position is reported as applied."""
        while not self.marks or self.marks[-1].complete_position < position:
            await self.changed.wait()


class Rig:
    """An applier, its cache account and vault, and a site's disk."""

    def __init__(self, tmp_path: Path) -> None:
        (tmp_path / "site").mkdir()
        self.disk = SiteDisk(tmp_path / "site", random.Random(3))
        self.disks = tmp_path / "disks"
        self.cache = FakeCache()
        self.vault = FakeVault(self.cache)
        self.waits = Waits()
        self._start(self.waits)

    def restart(self) -> None:
        """Replace the vault and the applier by new ones, as after a restart of both."""
        self.vault = FakeVault(self.cache)
        self._start(None)

    def _start(self, waits: Waits | None) -> None:
        self.applier = Applier(self.disks, self.cache, self.vault, waits)
        self.service = RecoveryService(self.applier, self.cache)

    def log(self, name: str) -> Packed:
        """Write to the disk, tag it, and return the part that its log makes."""
        self.disk.scribble(5)
        self.disk.tag(name)
        return self.disk.close_log()

    def state(self, position: int) -> bytes:
        """Return the managed disk's contents at a position."""
        view = open_view(self.disks / DISK_ID, position)
        try:
            return view.pread(0, view.size_bytes)
        finally:
            view.close()
