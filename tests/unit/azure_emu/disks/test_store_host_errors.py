"""Errors of the host's disk and kernel: temporary ones, and sectors that cannot be read."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from siterig.azure_emu.applier.applier import Applier
from siterig.azure_emu.applier.part_applier import DAMAGE_RETRIES
from siterig.azure_emu.applier.service import RecoveryService
from siterig.azure_emu.contracts.reports import SkippedBlob
from siterig.azure_emu.disks.loader import query_consistently
from siterig.azure_emu.disks.metadata import PROGRESS
from siterig.azure_emu.disks.queries import position_at
from siterig.azure_emu.disks.store import ManagedDiskStore, reset_disk
from siterig.azure_emu.disks.view import build_view, open_view
from siterig.blockfs.changelog.segment import RecordType
from siterig.blockfs.changelog.tags import TagSeen
from siterig.blockfs.core import failpoint
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.transfer.part_name import Listing, PartName, Watermark
from tests.support.disks.disk_history import DISK_ID, Packed, SiteDisk
from tests.support.io_faults import READ, io_verdict
from tests.support.stores.managed_disk import apply, assert_same, new_store, site, whole

os_open, os_pread = os.open, os.pread


def grown(tmp_path: Path, seed: int = 1, parts: int = 4) -> tuple[SiteDisk, ManagedDiskStore]:
    """A disk with a seed and so many log parts."""
    disk, store = site(tmp_path, seed), new_store(tmp_path)
    disk.scribble(10)
    apply(store, disk.sync())
    for _ in range(parts):
        disk.scribble(8)
        apply(store, [disk.close_log()])
    return disk, store


@contextmanager
def failing_open(name: str, number: int, times: int) -> Iterator[None]:
    """The next ``times`` openings of a file whose path ends so fail."""
    left = times

    def failing(path: str | Path, *args: int, **kwargs: int) -> int:
        nonlocal left
        if left and str(path).endswith(name):
            left -= 1
            raise OSError(number, os.strerror(number), str(path))
        return os_open(path, *args, **kwargs)

    with mock.patch("os.open", failing):
        yield


@contextmanager
def bad_sector(name: str, at: int, length: int = 8) -> Iterator[None]:
    """Reads of these bytes fail, in Python and in C."""

    def pread(fd: int, some: int, offset: int) -> bytes:
        if some and offset < at + length and offset + some > at and Path(f"/proc/self/fd/{fd}").readlink().name == name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return os_pread(fd, some, offset)

    with mock.patch("os.pread", pread):
        yield


# --- errors of the moment -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["disk.json", "progress", "base.map", ".journal"])
def test_an_error_of_the_moment_is_no_damage(name: str, tmp_path: Path) -> None:
    disk, store = grown(tmp_path)
    store.close()
    path = next(path for path in store.folder.rglob("*") if path.name.endswith(name))

    def opens() -> ManagedDiskStore:
        if name == ".journal":
            with failing_open(name, errno.EMFILE, 1):
                return ManagedDiskStore.open(store.folder)
        open_ = Path.open  # Path.read_bytes calls it, too

        def failing(this: Path, *args: Any, **kwargs: Any) -> Any:
            if this == path:
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), str(this))
            return open_(this, *args, **kwargs)

        with mock.patch.object(Path, "open", failing):
            return ManagedDiskStore.open(store.folder)

    with pytest.raises(RigError, match=": cannot be read: ") as caught:
        opens()
    assert (caught.value.code, caught.value.recoverable) == ("StoreIo", True)
    assert_same(whole(ManagedDiskStore.open(store.folder).view(disk.position)), bytes(disk.data), "opened again")


class Cache:
    """The parts in the cache account."""

    def __init__(self, parts: list[Packed]) -> None:
        self.parts = dict(parts)

    async def list(self, disk_id: str) -> Listing:
        return Listing.of(disk_id, [(part.blob(), len(data)) for part, data in self.parts.items()])

    async def get(self, part: PartName) -> bytes:
        return self.parts[part]

    async def delete(self, part: PartName) -> None:
        self.parts.pop(part, None)


class Reports:
    """A vault that takes everything."""

    async def applied(
        self, *, watermark: Watermark, tags: list[TagSeen], waiting_bytes: int | None = None
    ) -> Watermark | None:
        return None

    async def store_older(self, *, watermark: Watermark) -> None:
        pytest.fail("the store is as it was")

    async def apply_failed(self, *, disk_id: str, code: str, message: str, recoverable: bool) -> None:
        pytest.fail(f"{code}: {message}")

    async def account_seen(
        self, *, disk_id: str, waiting_bytes: int, skipped: list[SkippedBlob], skipped_count: int
    ) -> None:
        assert skipped_count == 0

    async def send_again(self, *, disk_id: str, parts: list[str], is_temporary: bool) -> None:
        """Nobody can."""

    async def replicating_disks(self) -> list[str]:
        return [DISK_ID]


@pytest.mark.parametrize(("number", "times"), [(errno.EMFILE, 1), (errno.EIO, 1), (errno.EIO, DAMAGE_RETRIES)])
async def test_no_store_is_set_aside_for_an_error_that_passes(
    number: int, times: int, tmp_path: Path, autojump_clock: object
) -> None:
    disk, store = grown(tmp_path)
    before = disk.position
    store.close()
    disk.new_generation()
    cache = Cache(disk.sync(bytes(disk.data)))
    service = RecoveryService(Applier(tmp_path, cache, Reports()), cache)  # type: ignore[arg-type]
    with failing_open(".journal", number, times):
        try:
            await service.process_latest(disk_ids=[DISK_ID])
        except RigError as exc:
            assert (number, exc.code, exc.recoverable) == (errno.EMFILE, "StoreIo", True)
    (mark,) = await service.process_latest(disk_ids=[DISK_ID])
    assert (mark.generation, mark.sync_complete) == (2, True)
    assert_same(whole(open_view(store.folder, before)), disk.states[before], "from before the resync")
    assert not list(tmp_path.glob(".damaged-*"))


@pytest.mark.slow
async def test_a_store_is_set_aside_for_damage_that_stays(tmp_path: Path, autojump_clock: object) -> None:
    disk, store = grown(tmp_path)
    store.close()
    disk.new_generation()
    cache = Cache(disk.sync())
    service = RecoveryService(Applier(tmp_path, cache, Reports()), cache)  # type: ignore[arg-type]
    with failing_open(".journal", errno.EIO, DAMAGE_RETRIES + 2):
        (mark,) = await service.process_latest(disk_ids=[DISK_ID])
    assert (mark.generation, mark.sync_complete) == (2, True)
    assert list(tmp_path.glob(".damaged-*"))


# --- sectors that cannot be read ----------------------------------------------------------------------------------


def test_data_of_an_unreadable_sector_is_rebuilt_where_possible(tmp_path: Path) -> None:
    disk, store = grown(tmp_path)
    frame = store.debug_state().frames[1]
    store.close()
    for at in (frame.start, frame.entries_at, frame.tags_at, frame.back_at):
        with bad_sector(f"{frame.journal_file:012d}.journal", at):
            again = ManagedDiskStore.open(store.folder)
            assert_same(whole(open_view(store.folder, disk.position)), bytes(disk.data), f"byte {at} unreadable")
            again.close()


def test_an_unreadable_last_frame_that_counts_is_no_torn_one(tmp_path: Path) -> None:
    _, store = grown(tmp_path)
    frame = store.debug_state().frames[-1]
    store.close()
    path = store.folder / f"journal/{frame.journal_file:012d}.journal"
    size = path.stat().st_size
    with bad_sector(path.name, frame.start, frame.end - frame.start), pytest.raises(RigError) as caught:
        ManagedDiskStore.open(store.folder)
    assert caught.value.message == f"{path}: managed disk is corrupt: byte {frame.start}: no frame begins here"
    assert path.stat().st_size == size


# --- compactions that cannot finish now --------------------------------------------------------------------------------


def test_parts_are_applied_while_an_interrupted_compaction_cannot_finish(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    disk, store = grown(tmp_path)
    target = disk.position
    with failpoint.armed("store.compaction.announced", failpoint.raises(Killed)), pytest.raises(Killed):
        store.compactor.compact(target)
    store.close()

    def unreadable(operation: int, path: str, offset: int, _size: int) -> int:
        return -errno.EIO if operation == READ and path.endswith("base.sums") else 0

    with io_verdict(unreadable):
        again = ManagedDiskStore.open(store.folder)
        disk.scribble(8)
        apply(again, [disk.close_log()])
        assert again.oldest_position == target
    assert again.compactor.compact(disk.position) == disk.position
    assert_same(whole(again.view(disk.position)), bytes(disk.data), "folded later")


@pytest.mark.real_disk
def test_a_disk_that_no_file_can_hold_is_refused_before_it_counts(tmp_path: Path) -> None:
    disk, store = grown(tmp_path)
    mark = store.watermark()
    disk.note(RecordType.RESIZE, 0, 1 << 62)
    with pytest.raises(RigError, match=f"grows the disk to {1 << 62} bytes; the file system at ") as caught:
        apply(store, [disk.close_log()])
    assert (caught.value.code, store.watermark()) == ("PartRefused", mark)
    store.close()
    assert ManagedDiskStore.open(store.folder).watermark() == mark


# --- concurrent changes -------------------------------------------------------------------------------------------


def test_a_time_query_during_compaction_returns_no_later_state(tmp_path: Path) -> None:
    disk, store = grown(tmp_path, parts=6)
    early = store.oldest_position * 10 + 50
    assert query_consistently(store.folder, lambda state: position_at(state, early)) * 10 <= early
    answers = []

    def while_compacting(_name: str) -> None:
        with pytest.raises(
            RigError, match=f"the oldest is position {store.oldest_position}, of {store.oldest_position * 10} ns"
        ) as caught:
            query_consistently(store.folder, lambda state: position_at(state, early))
        answers.append(caught.value.code)

    with failpoint.armed("store.base.announced", while_compacting):
        store.compactor.compact(disk.position - 5)
    assert answers == ["InvalidPosition"]


def test_a_view_that_a_reset_overtakes_is_refused(tmp_path: Path) -> None:
    _, store = grown(tmp_path, parts=0)
    position = store.oldest_position
    store.close()
    with mock.patch("siterig.azure_emu.disks.view.build_view") as built:

        def overtaken(*args: object) -> object:
            if built.call_count == 1:
                reset_disk(store.folder, created_ns=2).close()
            return build_view(*args)  # type: ignore[arg-type]

        built.side_effect = overtaken
        with pytest.raises(RigError) as caught:
            open_view(store.folder, position)
    assert caught.value.code == "InvalidPosition"
    assert not (store.folder / PROGRESS).exists()
