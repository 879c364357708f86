"""Faults of a change log: the guest meets an error, or a resync is due; log and disk never differ in silence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from siterig.blockfs.core.errors import Code, RigError
from siterig.host_faults.log_files import DiskHostLogs
from tests.support.faults.host_faults import armed, report
from tests.support.faults.logged_disk import LoggedDisk

EIO, FULL = "Input/output error", "No space left on device"
AT_WORK: list[tuple[str, set[str], str | None]] = [
    ("log open error=EMFILE", {"Too many open files"}, None),
    ("log append error=EIO occurrence=5", {EIO}, None),
    ("log append error=EIO occurrence=5 timing=after", {EIO}, None),
    ("log append error=ENOSPC occurrence=5 every=3", {FULL}, None),
    ("log append full_after=300KiB", {FULL}, None),
    ("log full_after=300KiB", {FULL}, None),
    ("log append tear=true occurrence=8", {EIO}, None),
    ("log append tear.parts=2 tear.keep=1 every=3", {EIO}, None),
    ("log append flip=true occurrence=4", set(), "LogCorrupt"),
    ("log sync error=EIO occurrence=1", {EIO}, "SyncFailed"),
    ("log sync error=EIO occurrence=1 timing=after", {EIO}, "SyncFailed"),
    ("log rotate error=EIO occurrence=1", {EIO}, None),
    ("log rotate error=ENOSPC occurrence=1", {FULL}, None),
    ("log rotate full_after=0B", {FULL}, None),
    ("log rotate lost=true occurrence=1", {"No such file or directory"}, "LogCorrupt"),
    ("log rotate broken_chain=true occurrence=1", set(), "LogCorrupt"),
    ("log part=dirty-bitmap lost=true", set(), "LogCorrupt"),
    ("log part=dirty-bitmap flip=true length=64", set(), "LogCorrupt"),
    ("log part=segment flip=true start=10KiB length=1KiB", set(), "LogCorrupt"),
]
"""Rule, the errors that the guest and the maintenance of the log meet, and the reason of the resync that is due then."""
AT_START: list[tuple[str, str | None, str | None]] = [
    ("log open part=segment error=EIO", None, "LogCorrupt"),
    ("log open part=segment error=EMFILE", "Too many open files", None),
    ("log open part=dirty-bitmap error=EMFILE", "Too many open files", None),
    ("log read error=ENOMEM", "Cannot allocate memory", None),
    ("log open part=dirty-bitmap error=EIO", None, "LogCorrupt"),
    ("log open part=dirty-bitmap lost=true", None, "LogCorrupt"),
    ("log read part=segment error=EIO", None, "LogCorrupt"),
    ("log read part=segment flip=true", None, "LogCorrupt"),
    ("log read part=dirty-bitmap flip=true length=64", None, "LogCorrupt"),
    ("log sync error=EIO occurrence=1", EIO, None),
    ("log rotate error=EIO", EIO, None),
    ("log rotate full_after=0B", FULL, None),
    ("log rotate lost=true", None, "LogCorrupt"),
    ("log rotate broken_chain=true", None, "LogCorrupt"),
    ("log broken_chain=true", None, "LogCorrupt"),
    ("log part=segment flip.bits=3 start=1KiB length=1KiB", None, "LogCorrupt"),
]
"""Rule, the error of the start under it, and the reason of the resync that is due after the next start."""


@pytest.fixture
def logged(tmp_path: Path) -> Iterator[LoggedDisk]:
    made = LoggedDisk(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize(("words", "errors", "due"), AT_WORK, ids=[row[0] for row in AT_WORK])
async def test_a_fault_at_work_is_reported_and_never_a_silent_difference(
    words: str, errors: set[str], due: str | None, logged: LoggedDisk
) -> None:
    logged.write(20)
    logged.disk.tracking.maintain()
    async with armed([DiskHostLogs(logged.root)], words) as injector:
        logged.work()
        found = await report(injector)
    assert found.injections, "the fault did not happen"
    assert set(logged.errors) == errors
    logged.disk.abandon()
    logged.open()
    assert logged.check() == due


@pytest.mark.parametrize(("words", "error", "due"), AT_START, ids=[row[0] for row in AT_START])
async def test_a_fault_at_a_start_is_reported_and_never_a_silent_difference(
    words: str, error: str | None, due: str | None, logged: LoggedDisk
) -> None:
    logged.work()
    logged.disk.abandon()
    async with armed([DiskHostLogs(logged.root)], words) as injector:
        if error is None:
            logged.open()
            logged.disk.abandon()
        else:
            with pytest.raises(OSError, match=error):
                logged.open()
        assert (await report(injector)).injections, "the fault did not happen"
    logged.open()
    assert logged.check() == due


async def test_a_full_host_disk_abandons_the_log_if_the_policy_allows_it(tmp_path: Path) -> None:
    logged = LoggedDisk(tmp_path, when_full="bitmap")
    async with armed([DiskHostLogs(logged.root)], "log append full_after=300KiB") as injector:
        logged.work()
        counts = (await report(injector)).counts
    assert (logged.errors, [count.fired for count in counts.values()]) == ([], [1])
    assert not logged.disk.tracking.active
    assert logged.check() == Code.LogFull
    logged.close()


async def test_a_snapshot_that_cannot_keep_old_bytes_fails_and_the_disk_does_not(logged: LoggedDisk) -> None:
    logged.write(20)
    for words, error, writes in (
        ("log append part=snapshot error=EIO occurrence=2", "could not keep old data", 20),
        ("log append part=snapshot full_after=64KiB", "could not keep old data", 20),
        ("log read part=snapshot error=EIO", "cannot be read", 1),
    ):
        before = logged.disk.read(0, 1 << 20)
        async with armed([DiskHostLogs(logged.root)], words) as injector:
            snapshot = logged.disk.begin_snapshot()
            logged.write(writes)
            with pytest.raises(RigError, match=error) as failed:
                for at in range(0, 1 << 20, 64 << 10):
                    assert snapshot.pread(at, 64 << 10) == before[at : at + (64 << 10)]
            assert failed.value.recoverable
            assert (await report(injector)).injections
        logged.disk.end_snapshot()
    assert logged.errors == []
    assert logged.check() is None
