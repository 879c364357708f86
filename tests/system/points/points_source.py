"""A protected VM of two disks as byte arrays: its parts, which of them have come, and the contents at each position.

All share one clock: a position lasts ten nanoseconds, in records and in the vault.
"""

from __future__ import annotations

import random
import secrets
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from siterig.azure_emu.contracts.recovery_side import RecoverySide
from siterig.azure_emu.vault.points.retention import HOUR_NS
from siterig.blockfs.contracts.control import CutInfo, DiskInfo, TagKind
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.contracts.prerequisites import SiteReadiness
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.progress import VmProgress
from siterig.blockfs.sides.vault_link import VaultLink
from siterig.cext.checksums import KEY_BYTES, TAG_BYTES, chunk_tag
from siterig.cext.packed_tags import unpack
from tests.support.disks.disk_history import CHUNK_BYTES, Packed, SiteDisk
from tests.system.points.points_roles import FolderCache

VM = "web01"
SIZES = {"data": 200 * 1024 + 512, "os": 256 * 1024}
GROWN_MAX = 400 * 1024
NS = 10
"""Nanoseconds per position."""
START = 1_800_000_000_000_000_000 // NS
HOUR = HOUR_NS // NS
Range = tuple[int, int]
Images = dict[str, bytes]


@dataclass
class SourceDisk:
    """A disk and the parts of its current generation, in order; ``come``: indexes of the parts in the cache account."""

    site: SiteDisk
    parts: list[Packed] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    come: set[int] = field(default_factory=set)
    past_parts: list[Packed] = field(default_factory=list)
    past_ranges: list[Range] = field(default_factory=list)
    past_ends: list[int] = field(default_factory=list)
    sync_count: int = 0

    def add(self, packed: list[Packed]) -> None:
        """Add parts that end at the current position."""
        self.parts += packed
        self.ends += [self.site.position] * len(packed)

    @property
    def applied(self) -> int:
        """The number of parts that can have been applied: the others wait for a part that has not come."""
        return next((i for i in range(len(self.parts)) if i not in self.come), len(self.parts))

    @property
    def mark(self) -> tuple[int, int, bool, int]:
        """The watermark when all possible parts are applied: generation, sync parts, complete, log number."""
        done = [part for part, _ in self.parts[: self.applied]]
        sync = sum(part.stream == "sync" for part in done)
        log = [part.last for part in done if part.stream == "log"]
        return self.site.generation, sync, 0 < self.sync_count <= len(done), log[-1] if log else 0

    def valid(self) -> list[Range]:
        """Return the ranges of positions that can then be read, if nothing was compacted."""
        done = self.applied
        if not self.sync_count or done < self.sync_count:
            return list(self.past_ranges)
        return [*self.past_ranges, (self.ends[self.sync_count - 1], self.ends[done - 1])]

    def floors(self) -> list[int]:
        """Return the positions up to which compaction may go."""
        done = self.applied
        return [*self.past_ends, *(self.ends[self.sync_count - 1 : done] if self.sync_count else [])]

    def begin_generation(self) -> None:
        """Begin a new generation; parts that have not come are lost."""
        self.past_ranges, self.past_ends = self.valid(), self.floors()
        self.past_parts += [self.parts[i] for i in sorted(self.come)]
        self.parts, self.ends, self.come, self.sync_count = [], [], set(), 0
        self.site.new_generation()

    def at(self, position: int) -> bytes:
        """Return the disk's contents at a position."""
        return self.site.states[max(known for known in self.site.states if known <= position)]

    def forget_before(self, position: int) -> None:
        """Remove states that cannot be read any more."""
        first = max(known for known in self.site.states if known <= position)
        for known in [known for known in self.site.states if known < first]:
            del self.site.states[known]


@dataclass(frozen=True)
class Point:
    """A tag that both disks have."""

    tag_id: str
    position: int
    app: bool


class Source:
    """A :class:`siterig.blockfs.sides.provider.Provider` with all that the test needs.

    The test does the work of the site's agents.
    """

    def __init__(
        self, folder: Path, rng: random.Random, cache: FolderCache, recovery: RecoverySide, vault: VaultLink
    ) -> None:
        self.rng = rng
        self._cache, self._recovery, self._vault = cache, recovery, vault
        self.disks: dict[str, SourceDisk] = {}
        self.tags: list[Point] = []
        self.resyncs = 0
        for name, size in SIZES.items():
            (folder / name).mkdir(parents=True)
            disk_id = str(uuid.UUID(int=rng.getrandbits(128)))
            site = SiteDisk(folder / name, rng, disk_id, bytearray(size), START)
            site.scribble(6)
            site.close_log()
            self.disks[name] = SourceDisk(site)

    # --- the disks ----------------------------------------------------------------------------------------------

    @property
    def position(self) -> int:
        """The newest position of both disks."""
        return max(disk.site.position for disk in self.disks.values())

    def advance(self, positions: int) -> None:
        """Let time pass for both disks."""
        now = self.position + positions
        for disk in self.disks.values():
            disk.site.position = now

    def write(self, name: str, count: int) -> None:
        self.advance(0)
        self.disks[name].site.scribble(count)
        self.advance(0)

    def grow(self, name: str, sectors: int) -> None:
        self.advance(0)
        site = self.disks[name].site
        site.resize(min(len(site.data) + sectors * 512, GROWN_MAX))
        self.advance(0)

    def close_log(self, name: str) -> None:
        """Close a part without a tag at its end."""
        disk = self.disks[name]
        if disk.site.has_notes:
            disk.add([disk.site.close_log()])

    def tag(self, kind: TagKind) -> Point:
        """Tag both disks at one position, and close their logs after the tag."""
        self.advance(1)
        tag_id = str(uuid.UUID(int=self.rng.getrandbits(128)))
        for disk in self.disks.values():
            tag = disk.site.tag("point", kind, tag_id)
            disk.add([disk.site.close_log()])
        self.tags.append(Point(tag_id, tag.position, kind == "ApplicationConsistent"))
        return self.tags[-1]

    def images(self, position: int) -> Images:
        """Return the contents of both disks at a position."""
        return {name: disk.at(position) for name, disk in self.disks.items()}

    def valid(self) -> list[Range]:
        """Return the ranges that both disks can read when all delivered parts are applied, if nothing was compacted."""
        ranges = [disk.valid() for disk in self.disks.values()]
        both = [(max(a, c), min(b, d)) for a, b in ranges[0] for c, d in ranges[1]]
        return sorted((first, last) for first, last in both if first <= last)

    def points(self) -> list[Point]:
        """Return the tags that both disks have, at positions that can be read."""
        ranges = self.valid()
        return [tag for tag in self.tags if any(first <= tag.position <= last for first, last in ranges)]

    # --- delivery -----------------------------------------------------------------------------------------------

    async def deliver(self, name: str, most: int, *, mixed: bool = True) -> None:
        """Put some parts into the cache account; if ``mixed``, in any order, and some earlier parts again."""
        disk = self.disks[name]
        waiting = [i for i in range(len(disk.parts)) if i not in disk.come][:most]
        if mixed:
            self.rng.shuffle(waiting)
            again = [*disk.past_parts, *(disk.parts[i] for i in sorted(disk.come))]
            for part, data in self.rng.sample(again, min(len(again), self.rng.randrange(3))):
                await self._cache.put(part, data)
        for i in waiting:
            await self._cache.put(*disk.parts[i])
            disk.come.add(i)

    async def deliver_all(self) -> None:
        for name in self.disks:
            await self.deliver(name, 1000, mixed=False)

    # --- the provider -------------------------------------------------------------------------------------------

    def _infos(self) -> list[DiskInfo]:
        return [
            DiskInfo(
                vm=VM,
                name=name,
                disk_id=disk.site.disk_id,
                size_bytes=len(disk.site.data),
                path=f"/site/{name}.img",
                folder="/site",
                tracked=True,
                generation=disk.site.generation,
                last_seq=0,
                last_position=0,
                unsent_log_bytes=0,
                log_bytes_max=None,
                dirty_bytes=0,
                snapshot_bytes=0,
                snapshot_bytes_max=None,
                snapshot=False,
                needs_resync=None,
                open_handles=0,
            )
            for name, disk in self.disks.items()
        ]

    async def create_vm(self, *, vm: str, disks: list[DiskSpec]) -> list[DiskInfo]:
        del vm, disks
        return self._infos()

    async def list_vms(self) -> list[DiskInfo]:
        return self._infos()

    async def check_vm(self, *, vm: str, excluded: list[str] | None = None) -> list[DiskInfo]:
        del vm, excluded
        return self._infos()

    async def check_prerequisites(self, *, vm: str, excluded: list[str] | None = None) -> SiteReadiness:
        del vm, excluded
        return SiteReadiness(disks=self._infos(), unmet=[])

    async def create_relationship(
        self,
        *,
        vm: str,
        interval_s: float,
        app_consistent_every_s: float | None,
        tracked: bool = True,
        disks: list[str] | None = None,
    ) -> list[DiskInfo]:
        del vm, interval_s, app_consistent_every_s, tracked, disks
        return self._infos()

    async def initial_replication(self, *, vm: str) -> None:
        del vm
        if any(disk.sync_count for disk in self.disks.values()):
            return
        self._snapshot(dict.fromkeys(self.disks))
        self.write("os", 3)
        await self.deliver_all()

    def _snapshot(self, against: dict[str, bytes | None]) -> None:
        """Sync both disks at one position."""
        self.advance(0)
        for name, disk in self.disks.items():
            parts = disk.site.sync(against[name])
            disk.add(parts)
            disk.sync_count = len(parts)

    async def resync(self, *, vm: str, limited: bool = False) -> None:
        """Begin a new generation and sync the differences; sometimes a first attempt is interrupted."""
        del vm
        self.resyncs += 1
        for cut in (True, False) if self.rng.random() < 0.4 else (False,):
            for disk in self.disks.values():
                disk.begin_generation()
            for name in self.disks:
                self.write(name, 2)
                self.disks[name].site.close_log()
            self._snapshot({name: await self._other_side(disk) for name, disk in self.disks.items()})
            if cut:
                for disk in self.disks.values():
                    for i in range(len(disk.parts) - 1):
                        await self._cache.put(*disk.parts[i])
                        disk.come.add(i)
        await self.deliver_all()

    async def _other_side(self, disk: SourceDisk) -> bytes:
        """Return bytes that equal the disk where the recovery side has the same chunks, and that differ elsewhere."""
        data, key = bytes(disk.site.data), secrets.token_bytes(KEY_BYTES)
        disk_id, count = disk.site.disk_id, -(-len(data) // CHUNK_BYTES)
        await self._recovery.process_latest(disk_ids=[disk_id])
        spans = [(0, count)]
        answer = await self._recovery.checksums(
            disk_id=disk_id, comparison_id=key.hex()[:8], key_hex=key.hex(), chunk_bytes=CHUNK_BYTES, spans=spans
        )
        await self._recovery.end_comparison(comparison_id=key.hex()[:8])
        theirs = unpack(answer.checked(spans).packed)
        found = bytearray()
        for i in range(count):
            chunk = data[i * CHUNK_BYTES : (i + 1) * CHUNK_BYTES]
            ours = chunk_tag(key, i, chunk.ljust(CHUNK_BYTES, b"\0"))
            found += chunk if ours == theirs.get(i, bytes(TAG_BYTES)) else bytes(byte ^ 1 for byte in chunk)
        return bytes(found)

    async def replicate_now(self, *, vm: str, kind: TagKind, name: str) -> CutInfo:
        point = self.tag(kind)
        await self.deliver_all()
        time_ns = point.position * NS
        await self._vault.point_sent(
            vm=vm, tag_id=point.tag_id, kind=kind, name=name, position=point.position, time_ns=time_ns
        )
        return CutInfo(vm=vm, tag_id=point.tag_id, kind=kind, name=name, position=point.position, time_ns=time_ns)

    async def progress(self, *, vm: str) -> VmProgress:
        return VmProgress(vm=vm, phase=None, disks=[])

    async def shutdown_vm(self, *, vm: str) -> None:
        pass

    async def suspend(self, *, vm: str) -> None:
        pass

    async def remove_relationship(self, *, vm: str) -> None:
        pass

    async def receive_disk(self, *, vm: str, disk: str, source_id: str, size_bytes: int, parts: int) -> None:
        raise RigError(Code.InvalidState, "nothing comes back in this test")

    async def commit_failback(self, *, vm: str) -> list[DiskInfo]:
        raise RigError(Code.InvalidState, "nothing comes back in this test")


def kept(points: list[Point], now: int, hours: int, in_use: set[str]) -> list[Point]:
    """Return the points that retention keeps according to docs/how-to/points.md."""
    newest = max(points, key=lambda point: point.position)
    newest_app = max((point for point in points if point.app), key=lambda point: point.position, default=None)
    as_of = min(now, newest.position)

    def stays(point: Point) -> bool:
        if point in (newest, newest_app) or point.tag_id in in_use or point.position > as_of - 2 * HOUR:
            return True
        old = [other for other in points if other.position <= as_of - 2 * HOUR]
        peers = [other for other in old if other.position // HOUR == point.position // HOUR]
        return point.position >= as_of - hours * HOUR and point == max(peers, key=lambda p: (p.app, p.position))

    return [point for point in points if stays(point)]


def same(found: bytes, want: bytes, what: str) -> None:
    """Compare two byte strings, and name the first byte that differs."""
    assert len(found) == len(want), f"{what}: {len(found)} bytes, not {len(want)}"
    if found != want:
        at = next(i for i, (a, b) in enumerate(zip(found, want, strict=True)) if a != b)
        raise AssertionError(f"{what}: first wrong byte at offset {at}: {found[at]:#x}, not {want[at]:#x}")
