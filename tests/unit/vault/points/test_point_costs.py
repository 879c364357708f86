"""The work for a new recovery point does not grow with the points and records before it.

Work is counted, not timed: calls of functions, operations of Python and of the engine on files, steps of the database.
"""

from __future__ import annotations

import gc
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from sqlalchemy import event, insert

from siterig.azure_emu.disks.store import ManagedDiskStore
from siterig.azure_emu.vault.db.schema import PointRow, TagSeenRow
from siterig.blockfs.changelog.segment import RecordType
from siterig.blockfs.host.disk_host import DiskHost
from tests.support.disks.disk_history import DISK_ID, SIZE_BYTES, SiteDisk
from tests.support.io_faults import io_verdict
from tests.support.rigs.fake_world import World
from tests.support.rigs.points import cut
from tests.support.rigs.vault_fakes import START_NS, protected, running

RECORDS = (0, 10_000, 100_000)
SLACK = 1.05
"""A journal file or a page of an index may be begun just now."""
_FILES = (
    "open",
    "read",
    "pread",
    "write",
    "pwrite",
    "pwritev",
    "fsync",
    "fdatasync",
    "ftruncate",
    "rename",
    "unlink",
    "stat",
)


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Calls in this thread, and operations on files.

    Without the garbage collector: it would call the finalizers of objects that other tests of this process have left.
    """
    work: Counter[str] = Counter()

    def called(_frame: object, kind: str, _argument: object) -> None:
        if kind in ("call", "c_call"):
            work["calls"] += 1

    def in_c(operation: int, _path: str, _offset: int, _size: int) -> int:
        work[f"engine {operation}"] += 1
        return 0

    def on_files(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            work[name] += 1
            return real(*arguments, **keywords)

        return call

    with ExitStack() as stack:
        stack.enter_context(io_verdict(in_c))
        for name in _FILES:
            stack.enter_context(mock.patch.object(os, name, on_files(name, getattr(os, name))))
        gc.disable()
        stack.callback(gc.enable)
        sys.setprofile(called)
        try:
            yield work
        finally:
            sys.setprofile(None)


def assert_constant(found: dict[int, Counter[str]]) -> None:
    """The operations are the same; calls, but for a few."""
    print(found)
    least = found[min(found)]
    for count, work in found.items():
        assert work.keys() == least.keys(), count
        for name in work:
            assert work[name] <= least[name] * SLACK, f"{name} after {count}: {work[name]}; before {least[name]}"


@pytest.mark.slow
async def test_a_tag_in_the_source_logs_costs_the_same_after_any_number_of_records(tmp_path: Path) -> None:
    found = {}
    host = DiskHost(tmp_path / "disks", tmp_path / "mnt")
    for name in ("os", "data"):
        await host.create_disk(vm="web01", name=name, size_bytes=1 << 30)
    await host.start_tracking(vm="web01")
    disk, rng, done = host.disk("web01", "os"), random.Random(1), 0
    for records in RECORDS:
        for _ in range(records - done):
            disk.write(rng.randrange(1 << 20) * 512, b"x" * 512)
        done = records
        await host.cut(vm="web01", kind="CrashConsistent", name="before")
        with counted() as found[records]:
            await host.cut(vm="web01", kind="CrashConsistent", name="point")
    host.abandon()
    assert_constant(found)


@pytest.mark.slow
def test_applying_a_tag_costs_the_same_after_any_number_of_records(tmp_path: Path) -> None:
    found = {}
    (tmp_path / "site").mkdir()
    disk = SiteDisk(tmp_path / "site", random.Random(1))
    store = ManagedDiskStore.create(tmp_path / DISK_ID, disk_id=DISK_ID, size_bytes=SIZE_BYTES, created_ns=1)
    for part in disk.sync():
        store.apply_part(*part)
    done = 0
    for records in RECORDS:
        for number in range(done, records):
            disk.note(RecordType.WRITE, number % 512 * 512, 512, b"x" * 512)
            if number % 1000 == 999:
                store.apply_part(*disk.close_log())
        done = records
        for name in ("before", "point"):
            tag = disk.tag(name)
            part = disk.close_log()
            with counted() as found[records]:
                store.apply_part(*part)
        assert store.tags()[-1] == tag
    store.close()
    assert_constant(found)


@contextmanager
def counted_steps(engine: Any, work: Counter[str]) -> Iterator[None]:
    """Statements, and tens of steps of the database's machine."""
    connections = set()

    def stepped() -> int:
        work["steps"] += 1
        return 0

    def executed(connection: Any, _cursor: object, _sql: str, *_: object) -> None:
        work["statements"] += 1
        connections.add(connection.connection.dbapi_connection)
        connection.connection.dbapi_connection.set_progress_handler(stepped, 10)

    event.listen(engine, "before_cursor_execute", executed)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", executed)
        for connection in connections:
            connection.set_progress_handler(None, 0)


@pytest.mark.slow
async def test_a_point_costs_the_vault_the_same_after_any_number_of_points(tmp_path: Path) -> None:
    found: dict[int, Counter[str]] = {}
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        disks = [disk.disk_id for disk in world.site["web01"].values()]
        for count in (10, 1000, 10_000):
            have = len(await vault.recovery_points.points(vm="web01"))

            def fill(session: Any, first: int = have, count: int = count) -> None:
                ids = [(n, f"00000000-0000-4000-9000-{n:012}") for n in range(first, count)]
                rows = [
                    {
                        "tag_id": tag_id,
                        "vm": "web01",
                        "kind": "CrashConsistent",
                        "name": "x",
                        "position": 100 + n,
                        "time_ns": START_NS + n,
                        "elapsed_ns": n,
                        "available": True,
                    }
                    for n, tag_id in ids
                ]
                session.execute(insert(PointRow), rows)
                seen = [{"tag_id": tag_id, "disk_id": disk_id} for _, tag_id in ids for disk_id in disks]
                session.execute(insert(TagSeenRow), seen)

            await vault.context.database.transact(fill)
            world.position = 100 + count
            await cut(world)
            found[count] = Counter()
            with counted_steps(vault.context.database.engine, found[count]):
                await cut(world)
            assert len(await vault.recovery_points.points(vm="web01")) == count + 2
    assert_constant(found)


def test_a_count_that_grows_is_seen() -> None:
    found = {}
    for count in (10, 1000):
        with counted() as found[count]:
            for _ in range(count):
                Path("/").stat()
    with pytest.raises(AssertionError):
        assert_constant(found)
