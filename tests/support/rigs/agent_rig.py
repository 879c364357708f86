"""An agent with a real disk host in this process, and a cache account, vault and recovery side in memory.

Every call from the agent to its peers passes a :class:`CallInterceptor`, where a test can kill the agent or make calls fail.
"""

from __future__ import annotations

import errno
import random
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import trio

from siterig.blockfs.changelog.segment import RecordType, SegmentReader
from siterig.blockfs.changelog.tags import decode_tag
from siterig.blockfs.contracts.control import CutInfo, TagKind
from siterig.blockfs.core.clock import SystemClock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.progress import Advance
from siterig.blockfs.core.waits import Waits
from siterig.blockfs.host.disk_host import DiskHost
from siterig.blockfs.images.image_formats import ImageFormat
from siterig.blockfs.layers.chunk_tags import DataRanges
from siterig.blockfs.sides.vault_link import ReplicationSettings, VaultLink
from siterig.blockfs.transfer.cache_account import CacheAccount
from siterig.blockfs.transfer.chunk_tags import ChunkTags
from siterig.blockfs.transfer.codec import unpack
from siterig.blockfs.transfer.part_name import SYNC_END, Listing, PartName, Watermark
from siterig.cext.checksums import chunk_tag
from siterig.cext.packed_tags import PackedTags, Span
from siterig.replication.engine.snapshots import SnapshotFile
from siterig.replication.guests.host_guests import Guests
from siterig.replication.hyperv.agent import HyperVAgent

VM = "web01"


class CallInterceptor:
    """Counts the agent's calls; at call ``kill_at`` the agent is killed, before or ``after`` the call took effect."""

    def __init__(self) -> None:
        self.calls = 0
        self.kill_at: int | None = None
        self.after = False
        self.scope: trio.CancelScope | None = None
        self.before: Callable[[str], None] = lambda _name: None
        self.dead = False
        """True: the agent was killed, and no further call of it has an effect."""

    async def through(self, name: str, find: Callable[[], Any], args: Any, kwargs: Any) -> Any:
        """Count one call and pass it on, unless the agent is killed at it."""
        self.calls += 1
        scope = self.scope if self.calls == self.kill_at else None
        if scope is not None and not self.after:
            scope.cancel()
        await trio.lowlevel.checkpoint()
        self.before(name)
        if self.dead:
            raise RigError(Code.RoleUnavailable, f"{name}: the agent was killed")
        result = await getattr(find(), name)(*args, **kwargs)
        if scope is not None:
            scope.cancel()
        await trio.lowlevel.checkpoint()
        return result


class InterceptedService:
    """A peer of the agent; ``find`` returns the current object behind it."""

    def __init__(self, interceptor: CallInterceptor, find: Callable[[], Any]) -> None:
        self._interceptor = interceptor
        self._find = find

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            return await self._interceptor.through(name, self._find, args, kwargs)

        return call


class MemoryCache(CacheAccount):
    """A cache account in memory; every call raises ``trouble`` while that is set."""

    def __init__(self) -> None:
        self.blobs: dict[PartName, bytes] = {}
        self.puts: list[PartName] = []
        self.put_bytes: list[int] = []
        self.together: list[set[PartName]] = []
        """The parts of each joint put."""
        self.foreign: list[str] = []
        self.refused: dict[PartName, RigError] = {}
        self.trouble: RigError | None = None

    def _check(self) -> None:
        if self.trouble is not None:
            raise self.trouble

    async def put(self, part: PartName, data: bytes, *, replace: bool = False) -> bool:
        self._check()
        if part in self.refused:
            raise self.refused[part]
        self.puts.append(part)
        self.put_bytes.append(len(data))
        if replace:
            self.blobs[part] = data
        return self.blobs.setdefault(part, data) is data

    async def put_together(self, parts: Mapping[PartName, bytes]) -> None:
        self._check()
        self.together.append(set(parts))
        await super().put_together(parts)

    async def list(self, disk_id: str) -> Listing:
        self._check()
        blobs = [(part.blob(), len(data)) for part, data in self.blobs.items() if part.disk_id == disk_id]
        return Listing.of(disk_id, blobs + [(name, 9) for name in self.foreign])

    async def get(self, part: PartName) -> bytes:
        self._check()
        if part not in self.blobs:
            raise RigError(Code.PartNotFound, f"{part.blob()} is not there")
        return self.blobs[part]

    async def delete(self, part: PartName) -> None:
        self._check()
        self.blobs.pop(part, None)


@dataclass
class ManagedDisk:
    """A managed disk on the recovery side; ``points`` maps the position of each tag to the contents."""

    data: bytearray
    generation: int = 0
    sync_parts: int = 0
    complete: bool = False
    log_seq: int = 0
    position: int = 0
    points: dict[int, bytes] = field(default_factory=dict)
    undo: list[tuple[int, int, bytes]] = field(default_factory=list)
    """(position, offset, old bytes) of each applied record of the log that wrote."""

    def state_at(self, position: int) -> bytes:
        """Return the contents at a position that the log has reached."""
        assert position <= self.position, f"position {position} is not applied; the disk is at {self.position}"
        data = bytearray(self.data)
        for at, offset, old in reversed(self.undo):
            if at > position:
                data[offset : offset + len(old)] = old
        return bytes(data)


class Recovery:
    """A recovery side that applies parts in their order, and checks them."""

    def __init__(self, cache: MemoryCache, folder: Path) -> None:
        self._cache = cache
        self._part_file = folder / "part"
        self.disks: dict[str, ManagedDisk] = {}
        self.running = True

    def apply(self) -> None:
        """Apply all parts that can be applied, and delete them from the cache account."""
        for disk_id, disk in self.disks.items():
            while self.running and (part := self._next(disk_id, disk)) is not None:
                self._apply_part(disk, part)
                del self._cache.blobs[part]

    def _next(self, disk_id: str, disk: ManagedDisk) -> PartName | None:
        own = sorted(part for part in self._cache.blobs if part.disk_id == disk_id)
        newest = max((part.generation for part in own if part.stream == "sync" and part.first == 1), default=0)
        if newest > disk.generation:
            disk.generation, disk.sync_parts, disk.complete, disk.log_seq = newest, 0, False, 0
        for part in own:
            if part.generation < disk.generation:
                del self._cache.blobs[part]
            elif part.generation == disk.generation:
                if part.stream == "sync" and part.first == disk.sync_parts + 1:
                    return part
                if part.stream == "log" and disk.complete and part.first == disk.log_seq + 1:
                    return part
        return None

    def _apply_part(self, disk: ManagedDisk, part: PartName) -> None:
        unpack(part, self._cache.blobs[part], self._part_file)
        with SegmentReader(self._part_file) as reader:
            if part.stream == "sync":
                _grow(disk, reader.header.disk_size_bytes)
            for record in reader.records():
                end = record.offset + record.length
                if part.stream == "log" and record.type in (RecordType.WRITE, RecordType.ZERO):
                    disk.undo.append((record.position, record.offset, bytes(disk.data[record.offset : end])))
                if record.type is RecordType.WRITE:
                    disk.data[record.offset : end] = reader.payload(record)
                elif record.type is RecordType.ZERO:
                    disk.data[record.offset : end] = bytes(record.length)
                elif record.type is RecordType.RESIZE:
                    _grow(disk, record.length)
                elif record.type is RecordType.TAG:
                    tag = decode_tag(reader.payload(record))
                    if tag.name == SYNC_END:
                        disk.complete = True
                        disk.log_seq = record.offset - 1
                    else:
                        disk.points[tag.position] = bytes(disk.data)
                if part.stream == "log":
                    disk.log_seq = record.seq
                    disk.position = record.position
        if part.stream == "sync":
            disk.sync_parts = part.first


def _grow(disk: ManagedDisk, size_bytes: int) -> None:
    assert size_bytes >= len(disk.data)
    disk.data.extend(bytes(size_bytes - len(disk.data)))


LOOK_S = 0.25
"""The time between two looks of a call that waits for other watermarks."""


class MemoryVault(VaultLink):
    """The vault's reports in memory; every call raises ``trouble`` while that is set."""

    def __init__(self, recovery: Recovery) -> None:
        self._recovery = recovery
        self.allowed = True
        self.user_settings: ReplicationSettings | None = None
        self.trouble: RigError | None = None
        self.errors: list[tuple[float, str, int, float | None]] = []
        self.script_failures: list[tuple[str, str]] = []
        self.recovered: list[float] = []
        self.points: list[int] = []
        self.put_news: list[list[str]] = []
        self.names: list[str] = []
        self.kinds: list[str] = []
        self.ages_s: list[float] = []
        self.downgraded: dict[int, str] = {}
        self.resyncs: list[str] = []
        self.waiting: dict[str, int] = {}
        self.compared: list[tuple[str, int, list[tuple[int, int]]]] = []
        """The calls of :meth:`checksums`: disk, bytes of a chunk, spans."""
        self.keys: list[str] = []
        self.refusals: list[RigError] = []
        """Errors of the next calls of :meth:`checksums`."""
        self.ended_comparisons: list[str] = []

    def _check(self) -> None:
        if self.trouble is not None:
            raise self.trouble

    async def watermarks(self, *, vm: str, known: list[Watermark] | None = None, patience_s: float = 0.0) -> list[Watermark]:
        marks = self._marks()
        with trio.move_on_after(patience_s):
            while marks == known:
                await trio.sleep(LOOK_S)
                marks = self._marks()
        return marks

    async def parts_put(self, *, disk_ids: list[str]) -> None:
        self._check()
        self.put_news.append(disk_ids)

    def _marks(self) -> list[Watermark]:
        self._check()
        self._recovery.apply()
        return [
            Watermark(
                disk_id=disk_id,
                generation=disk.generation,
                sync_parts=disk.sync_parts,
                sync_complete=disk.complete,
                log_seq=disk.log_seq,
                complete_position=disk.position,
                complete_time_ns=0,
            )
            for disk_id, disk in self._recovery.disks.items()
        ]

    async def may_replicate(self, *, vm: str) -> bool:
        self._check()
        return self.allowed

    async def settings(self, *, vm: str) -> ReplicationSettings | None:
        self._check()
        return self.user_settings

    async def point_sent(
        self,
        *,
        vm: str,
        tag_id: str,
        kind: TagKind,
        name: str,
        position: int,
        time_ns: int,
        downgraded_because: str | None = None,
        age_s: float = 0.0,
        waiting_bytes: dict[str, int] | None = None,
        disk_bytes: dict[str, int] | None = None,
    ) -> None:
        self._check()
        self.waiting = waiting_bytes or {}
        self.points.append(position)
        self.ages_s.append(age_s)
        self.names.append(name)
        self.kinds.append(kind)
        if downgraded_because is not None:
            self.downgraded[position] = downgraded_because

    async def replication_error(
        self, *, vm: str, code: str, message: str, recoverable: bool, attempt: int, next_try_s: float | None
    ) -> None:
        self._check()
        self.errors.append((trio.current_time(), code, attempt, next_try_s))

    async def app_point_failed(self, *, vm: str, code: str, message: str) -> None:
        self._check()
        self.script_failures.append((code, message))

    async def replication_recovered(self, *, vm: str) -> None:
        self._check()
        self.recovered.append(trio.current_time())

    async def resync_required(self, *, vm: str, reason: str) -> None:
        self._check()
        self.resyncs.append(reason)

    async def checksums(
        self,
        *,
        disk_id: str,
        comparison_id: str,
        key_hex: str,
        chunk_bytes: int,
        spans: list[tuple[int, int]],
        position: int | None = None,
        generation: int | None = None,
    ) -> ChunkTags:
        self._check()
        if self.refusals:
            raise self.refusals.pop()
        self.keys.append(key_hex)
        self.compared.append((disk_id, chunk_bytes, spans))
        managed = self._recovery.disks[disk_id]
        data = managed.data if position is None else managed.state_at(position)

        def pread(offset: int, length: int) -> bytes:
            return bytes(data[offset : offset + length])

        return ChunkTags.of(PackedTags(packed_tags(pread, bytes.fromhex(key_hex), chunk_bytes, spans), None))

    async def end_comparison(self, *, comparison_id: str) -> None:
        self._check()
        self.ended_comparisons.append(comparison_id)


def packed_tags(pread: Callable[[int, int], bytes], key: bytes, chunk_bytes: int, spans: Iterable[tuple[int, int]]) -> bytes:
    """Return the packed tags of a disk, chunk by chunk in Python; ``pread`` returns fewer bytes at the end of the disk."""
    packed = b""
    for first, count in spans:
        for chunk in range(first, first + count):
            tag = chunk_tag(key, chunk, pread(chunk * chunk_bytes, chunk_bytes).ljust(chunk_bytes, b"\0"))
            packed += chunk.to_bytes(8, "little") + tag if any(tag) else b""
    return packed


class FakeGuests(Guests):
    """Guests that only record the calls."""

    def __init__(self) -> None:
        self.mounted: list[str] = []
        self.refusal: RigError | None = None
        self.is_frozen = False
        self.formatted: list[tuple[str, str, str]] = []
        self.filled: list[tuple[str, Path]] = []
        self.may_fill = trio.Event()
        self.may_fill.set()
        self.shut_down: list[str] = []

    async def mountpoints(self, disks: list[Path]) -> list[str]:
        return list(self.mounted)

    @asynccontextmanager
    async def frozen(self, mountpoints: list[str], *, timeout_s: float) -> AsyncIterator[None]:
        if self.refusal is not None:
            raise self.refusal
        self.is_frozen = True
        try:
            yield
        finally:
            self.is_frozen = False

    async def check_shutdown(self, disks: list[Path]) -> None:
        pass

    async def shutdown(self, disks: list[Path]) -> None:
        self.shut_down = [str(disk) for disk in disks]

    async def format(self, disk: Path, filesystem: str, label: str, *, sector_bytes: int = 512) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.formatted.append((disk.name, filesystem, label))

    async def fill(self, disk: Path, image: Path, advance: Advance, *, format_: ImageFormat | None = None) -> None:
        if self.refusal is not None:
            raise self.refusal
        advance(4096)
        await self.may_fill.wait()
        self.filled.append((disk.name, image))


class HostSnapshot(SnapshotFile):
    """A snapshot that is read from the host in this process, without a mount, but with the errors of a mount."""

    def __init__(self, find_host: Callable[[], DiskHost], path: Path) -> None:
        self._find_host = find_host
        self._host = find_host()
        self._path = path
        snapshot = self._host.disk(path.parent.name, path.stem).snapshot
        if snapshot is None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        self._snapshot = snapshot

    def pread_into(self, offset: int, memory: memoryview) -> None:
        memory[:] = self.pread(offset, len(memory))

    def pread(self, offset: int, length: int) -> bytes:
        """Read bytes of the snapshot."""
        if self._find_host() is not self._host:
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected", str(self._path))
        return self._snapshot.pread(offset, length)

    def tags(self, key: bytes, chunk_bytes: int, spans: Sequence[Span], data: DataRanges) -> PackedTags:
        size = self._snapshot.size_bytes

        def pread(offset: int, length: int) -> bytes:
            return self.pread(offset, min(length, size - offset)) if offset < size else b""

        ranges = [(int(data.c[at].start), int(data.c[at].end)) for at in range(data.count)]
        with_data = [
            (chunk, 1)
            for first, count in spans
            for chunk in range(first, first + count)
            if any(start < (chunk + 1) * chunk_bytes and end > chunk * chunk_bytes for start, end in ranges)
        ]
        return PackedTags(packed_tags(pread, key, chunk_bytes, with_data), None)

    def close(self) -> None:
        pass


class RigClock(SystemClock):
    """Wall and boot time of a rig: both follow the trio run; the test sets the wall clock and the boot id."""

    def __init__(self, rig: Rig) -> None:
        super().__init__()
        self._rig = rig
        self._boot_id = rig.boot_id

    def wall_ns(self) -> int:
        return self.boottime_ns() + self._rig.wall_ahead_ns

    def boottime_ns(self) -> int:
        return int(trio.current_time() * 1e9)


class Rig:
    """One site host, one agent, which can be killed, and one recovery side."""

    def __init__(self, folder: Path, *, sizes: dict[str, int] | None = None) -> None:
        self.folder = folder
        self.sizes = sizes if sizes is not None else {"os": 192 << 10, "data": 128 << 10}
        self.growths: list[tuple[int, str, int]] = []
        self.interceptor = CallInterceptor()
        self.cache = MemoryCache()
        self.recovery = Recovery(self.cache, folder)
        self.vault = MemoryVault(self.recovery)
        self.guests = FakeGuests()
        self.waits = Waits()
        self.random = random.Random(7)
        self.history: list[tuple[int, str, int, bytes]] = []
        self.retry_delays_s: tuple[float, ...] = (1.0,)
        self.interval_s = 30.0
        self.app_consistent_every_s: float | None = None
        self.wall_ahead_ns = 0
        self.boot_id = str(uuid.uuid4())
        self.host = self._open_host()

    def _open_host(self) -> DiskHost:
        return DiskHost(self.folder / "site", self.folder / "mnt")

    async def make_vm(self) -> None:
        """Create the VM at the site, and its managed disks."""
        for name, size in self.sizes.items():
            info = await self.host.create_disk(vm=VM, name=name, size_bytes=size)
            self.recovery.disks[info.disk_id] = ManagedDisk(bytearray(size))

    def kill_host(self) -> None:
        """Replace the disk host by a new one, as after a kill."""
        self.host.abandon()
        self.host.positions.close()
        self.host = self._open_host()

    def write(self, count: int = 1, length: int = 4096) -> None:
        """Write random data to random places of the disks."""
        for _ in range(count):
            name = self.random.choice(list(self.sizes))
            offset = self.random.randrange(0, self.sizes[name] - length + 1, 512)
            data = self.random.randbytes(length)
            self.host.disk(VM, name).write(offset, data)
            self.history.append((self.host.positions.value, name, offset, data))

    async def grow(self, name: str, by_bytes: int) -> None:
        """Make a disk larger."""
        self.growths.append((self.host.positions.value, name, self.sizes[name]))
        self.sizes[name] += by_bytes
        await self.host.resize_disk(vm=VM, disk=name, size_bytes=self.sizes[name])

    def disk_at(self, name: str, position: int) -> bytes:
        """Return the expected contents of a disk at a position."""
        before = [size for at, disk, size in self.growths if disk == name and at >= position]
        data = bytearray(before[0] if before else self.sizes[name])
        for at, disk, offset, piece in self.history:
            if disk == name and at <= position:
                data[offset : offset + len(piece)] = piece
        return bytes(data)

    def managed(self, name: str) -> ManagedDisk:
        """Return the managed disk of a disk."""
        return self.recovery.disks[self.host.disk(VM, name).state.disk_id]

    def check_point(self, position: int) -> None:
        """Check that the recovery point has, on every disk, exactly the writes up to its position."""
        self.recovery.apply()
        for name in self.sizes:
            assert self.managed(name).points[position] == self.disk_at(name, position), f"disk {name} at {position}"

    def new_agent(self) -> HyperVAgent:
        """Return a new agent, which does not run yet."""
        return HyperVAgent(
            host=cast(Any, InterceptedService(self.interceptor, lambda: self.host)),
            cache=cast(Any, InterceptedService(self.interceptor, lambda: self.cache)),
            vault=cast(Any, InterceptedService(self.interceptor, lambda: self.vault)),
            folder=self.folder / "agent",
            clock=RigClock(self),
            retry_delays_s=self.retry_delays_s,
            guests=self.guests,
            open_snapshot=lambda path: HostSnapshot(lambda: self.host, path),
            waits=self.waits,
        )

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[HyperVAgent]:
        """Run an agent, which is killed at the end of the block or by the interceptor."""
        agent = self.new_agent()
        async with trio.open_nursery() as nursery:
            self.interceptor.scope = nursery.cancel_scope
            await nursery.start(lambda task_status: agent.run(task_status=task_status))
            try:
                yield agent
            finally:
                self.interceptor.scope = None
                nursery.cancel_scope.cancel()

    async def protect(self, agent: HyperVAgent) -> None:
        """Begin replication of the VM, with an initial replication."""
        await agent.create_relationship(
            vm=VM, interval_s=self.interval_s, app_consistent_every_s=self.app_consistent_every_s
        )
        await agent.initial_replication(vm=VM)

    async def cycle(self, agent: HyperVAgent, kind: TagKind = "CrashConsistent") -> CutInfo:
        """Run one cycle of delta replication, and return its cut."""
        return await agent.replicate_now(vm=VM, kind=kind, name="test")

    @contextmanager
    def cache_down(self, code: str = "CacheUnreachable", *, recoverable: bool = True) -> Iterator[None]:
        """Let every call of the cache account fail during the block."""
        self.cache.trouble = RigError(Code.of(code), f"{code} for the test", recoverable=recoverable)
        try:
            yield
        finally:
            self.cache.trouble = None
