"""Bugs that a simulation must find, each planted in the implementation of a contract.

No production name is replaced: a bug is an object between a role and the contract that it calls, as a wrong implementation
of that contract would be.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import trio

from siterig.azure_emu.contracts.recovery_side import RecoverySide
from siterig.azure_emu.contracts.reports import ApplierReports
from siterig.blockfs.contracts.control import DiskHostControl, DiskInfo
from siterig.blockfs.core.progress import Advance
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.images.image_formats import ImageFormat
from siterig.blockfs.layers.chunk_tags import DataRanges
from siterig.blockfs.sides.provider import Provider
from siterig.blockfs.sides.vault_link import VaultLink
from siterig.blockfs.transfer.cache_account import BlobAccount
from siterig.blockfs.transfer.chunk_tags import ChunkTags
from siterig.blockfs.transfer.data_keys import DataKeyGrant, DataKeys
from siterig.blockfs.transfer.part_name import PartName, Watermark
from siterig.cext.packed_tags import PackedTags, Span
from siterig.replication.engine.snapshots import SnapshotFile
from siterig.replication.guests.host_guests import Guests
from siterig.scenarios.simulation.invariants import MARKER
from siterig.scenarios.simulation.rig.plan import PlannedFault, PlannedOperation, RunPlan
from siterig.scenarios.simulation.rig.snapshot_file import HostSnapshot
from siterig.scenarios.simulation.rig.world import VM, World, WorldParts


class Tampered:
    """An object whose methods are those of another, but for some."""

    def __init__(self, real: Any, **methods: Callable[..., Awaitable[Any]]) -> None:
        self._real = real
        self._methods = methods

    def __getattr__(self, name: str) -> Any:
        return self._methods.get(name) or getattr(self._real, name)


class TamperedLink(WorldParts):
    """Tampers with the calls of one role by one contract."""

    client: str
    protocol: type

    def link(self, world: World, client: str, link: object, protocol: type) -> object:
        return Tampered(link, **self.methods(world, link)) if (client, protocol) == (self.client, self.protocol) else link

    def methods(self, world: World, link: Any) -> dict[str, Callable[..., Awaitable[Any]]]:
        """Return the methods that are other ones."""
        raise NotImplementedError


class LostNews(WorldParts):
    """No news of a part arrives anywhere, and no wait for a watermark ends early.  This is no bug: it costs time only."""

    def link(self, world: World, client: str, link: object, protocol: type) -> object:
        async def parts_put(**_news: Any) -> None:
            await trio.lowlevel.checkpoint()

        return Tampered(link, parts_put=parts_put)


class WatermarkAhead(TamperedLink):
    """The agent gets watermarks ahead of the applied data."""

    client, protocol = "agent", VaultLink

    def methods(self, world: World, link: Any) -> dict[str, Callable[..., Awaitable[Any]]]:
        async def watermarks(*, vm: str, **_known: Any) -> list[Watermark]:
            marks: list[Watermark] = await link.watermarks(vm=vm)
            return [mark.model_copy(update={"log_seq": mark.log_seq + 1000}) for mark in marks]

        return {"watermarks": watermarks}


class ReportSwallowed(TamperedLink):
    """The applier takes a report of applied parts for delivered that never was."""

    client, protocol = "applier", ApplierReports

    def methods(self, world: World, link: Any) -> dict[str, Callable[..., Awaitable[Any]]]:
        async def applied(**_report: Any) -> None:
            await trio.lowlevel.checkpoint()

        return {"applied": applied}


class EarlyDelete(TamperedLink):
    """The applier deletes a blob when it has read it, before it is applied."""

    client, protocol = "applier", BlobAccount

    def methods(self, world: World, link: Any) -> dict[str, Callable[..., Awaitable[Any]]]:
        async def get(part: PartName) -> bytes:
            data: bytes = await link.get(part)
            await link.delete(part)
            return data

        return {"get": get}


class GoodPartRefused(TamperedLink):
    """The applier takes a good part, which it has applied, for a damaged one."""

    client, protocol = "applier", ApplierReports

    def methods(self, world: World, link: Any) -> dict[str, Callable[..., Awaitable[Any]]]:
        async def applied(*, watermark: Watermark, **report: Any) -> Watermark | None:
            part = PartName(watermark.disk_id, watermark.generation, "log", 1, 1)
            await link.send_again(disk_id=watermark.disk_id, parts=[part.blob()], is_temporary=False)
            later: Watermark | None = await link.applied(watermark=watermark, **report)
            return later

        return {"applied": applied}


class PlaintextSent(TamperedLink):
    """The agent puts the bytes of the guest without encryption."""

    client, protocol = "agent", BlobAccount

    def methods(self, world: World, link: Any) -> dict[str, Callable[..., Awaitable[Any]]]:
        async def put(part: PartName, data: bytes, *, replace: bool = False) -> bool:
            done: bool = await link.put(part, data + MARKER, replace=replace)
            return done

        return {"put": put}


class KeyNotKept(TamperedLink):
    """The agent gets another data key each time that it asks."""

    client, protocol = "agent", DataKeys

    def methods(self, world: World, link: Any) -> dict[str, Callable[..., Awaitable[Any]]]:
        async def part_key(*, disk_id: str, generation: int) -> DataKeyGrant:
            grant: DataKeyGrant = await link.part_key(disk_id=disk_id, generation=generation)
            return grant.model_copy(update={"secret_hex": uuid.uuid4().hex * 2})

        return {"part_key": part_key}


class BlindComparison(TamperedLink):
    """A resync compares the source with itself, so that nothing differs."""

    client, protocol = "vault", RecoverySide

    def methods(self, world: World, link: Any) -> dict[str, Callable[..., Awaitable[Any]]]:
        async def checksums(*, disk_id: str, key_hex: str, chunk_bytes: int, spans: list[Span], **_: Any) -> ChunkTags:
            await trio.lowlevel.checkpoint()
            host = world.site_host
            assert host is not None
            name = next(disk.paths.name for disk in host.registry.all_disks() if disk.state.disk_id == disk_id)
            path = Path(f"/{VM}/{name}.snapshot")
            file = HostSnapshot(lambda: world.site_host, host, path)
            return ChunkTags.of(file.tags(bytes.fromhex(key_hex), chunk_bytes, spans, None))  # type: ignore[arg-type]

        return {"checksums": checksums}


class OlderState(TamperedLink):
    """A recovered VM has the state of a position before that of its point."""

    client, protocol = "vault", DiskHostControl

    def methods(self, world: World, link: Any) -> dict[str, Callable[..., Awaitable[Any]]]:
        async def create_disk_from_point(*, position: int, **rest: Any) -> DiskInfo:
            disk: DiskInfo = await link.create_disk_from_point(position=position - 8, **rest)
            return disk

        return {"create_disk_from_point": create_disk_from_point}


class FailbackSkipped(TamperedLink):
    """A failback reports success, and the site keeps its old disks."""

    client, protocol = "vault", Provider

    def methods(self, world: World, link: Any) -> dict[str, Callable[..., Awaitable[Any]]]:
        async def commit_failback(**_: Any) -> list[DiskInfo]:
            await trio.lowlevel.checkpoint()
            return []

        return {"commit_failback": commit_failback}


class OlderComparison(TamperedLink):
    """A verification gets the checksums of an older state of the recovery side."""

    client, protocol = "vault", RecoverySide

    def methods(self, world: World, link: Any) -> dict[str, Callable[..., Awaitable[Any]]]:
        async def checksums(*, position: int | None = None, **rest: Any) -> ChunkTags:
            tags: ChunkTags = await link.checksums(position=None if position is None else position - 8, **rest)
            return tags

        return {"checksums": checksums}


class ShutdownLies(WorldParts):
    """The guests continue to write, although the agent has shut the VM down."""

    def guests(self, guests: Guests) -> Guests:
        async def shutdown(_disks: list[Path]) -> None:
            await trio.lowlevel.checkpoint()

        return cast(Guests, Tampered(guests, shutdown=shutdown))


class TornSnapshot(WorldParts):
    """The first read of a snapshot has the newest bytes of the disk, not those of the snapshot: here, zeros."""

    def snapshot(self, file: SnapshotFile) -> SnapshotFile:
        class Torn(SnapshotFile):
            def pread_into(self, offset: int, memory: memoryview) -> None:
                memory[:] = bytes(len(memory))

            def tags(self, key: bytes, chunk_bytes: int, spans: Sequence[Span], data: DataRanges) -> PackedTags:
                return file.tags(key, chunk_bytes, spans, data)

            def close(self) -> None:
                file.close()

        return Torn()


class FlushLies(WorldParts):
    """A flush returns, and nothing is durable."""

    def flush(self, disk: Disk) -> None:
        pass


class KillLosesWrites(WorldParts):
    """The kill of the disk host loses a write."""

    def killed(self, world: World, role: str) -> None:
        if role == "site":
            image = world.folder / "site" / VM / "os.img"
            times = image.stat()
            with image.open("r+b") as file:
                file.write(b"\xff" * 512)
            os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))


class FreezeNeverEnds(WorldParts):
    """A freeze of the guests waits for ever, although the agent gave it a limit."""

    def guests(self, guests: Guests) -> Guests:
        class Stuck(Guests):
            async def mountpoints(self, disks: list[Path]) -> list[str]:
                return await guests.mountpoints(disks)

            @asynccontextmanager
            async def frozen(self, mountpoints: list[str], *, timeout_s: float) -> AsyncIterator[None]:
                await trio.sleep_forever()
                yield

            async def check_shutdown(self, disks: list[Path]) -> None:
                await guests.check_shutdown(disks)

            async def shutdown(self, disks: list[Path]) -> None:
                await guests.shutdown(disks)

            async def format(self, disk: Path, filesystem: str, label: str, *, sector_bytes: int = 512) -> None:
                raise NotImplementedError

            async def fill(self, disk: Path, image: Path, advance: Advance, *, format_: ImageFormat | None = None) -> None:
                raise NotImplementedError

        return Stuck()


@dataclass(frozen=True, slots=True)
class PlantedBug:
    """A bug, a plan under which it shows, and the invariant that it breaks."""

    parts: type[WorldParts]
    invariant: str
    faults: tuple[PlannedFault, ...] = ()
    begins_protected: bool = True
    operations: tuple[PlannedOperation, ...] = ()

    def plan(self) -> RunPlan:
        """Return the plan."""
        return RunPlan(
            7,
            self.faults,
            60.0,
            interval_s=30.0,
            app_consistent_every_s=30.0 if self.parts is FreezeNeverEnds else None,
            writes_per_s=1.0,
            begins_protected=self.begins_protected,
            operations=self.operations,
            heals_within_s=300.0,
        )


_KILLED_SITE = (PlannedFault(20.0, "kill", target="site"),)
_POWER_LOSS = (PlannedFault(20.0, "power-loss"),)
_TEST = (PlannedOperation(20.0, "test-failover"),)
_PLANNED = (PlannedOperation(10.0, "planned-failover"),)
_VERIFY = (PlannedOperation(40.0, "verify"),)
_PROTECT = (PlannedOperation(1.0, "attach-disk"), PlannedOperation(40.0, "protect-disk"))
_CONVERGES = "a healed network leads back to Normal"

BUGS = (
    PlantedBug(WatermarkAhead, "no segment deleted early"),
    PlantedBug(ReportSwallowed, "no blob deleted early"),
    PlantedBug(EarlyDelete, "no blob deleted early"),
    PlantedBug(PlaintextSent, "no plaintext in the account"),
    PlantedBug(KeyNotKept, "no resync without a cause"),
    PlantedBug(GoodPartRefused, "no resync without a cause", _KILLED_SITE),
    PlantedBug(BlindComparison, "every point equals the model", _POWER_LOSS),
    PlantedBug(TornSnapshot, "every point equals the model", begins_protected=False),
    PlantedBug(TornSnapshot, "every point equals the model", operations=_PROTECT),
    PlantedBug(FlushLies, "a flush is durable", _POWER_LOSS),
    PlantedBug(KillLosesWrites, "a kill loses no write", _KILLED_SITE),
    PlantedBug(FreezeNeverEnds, _CONVERGES),
    PlantedBug(OlderState, "a recovered VM equals its point", operations=_TEST),
    PlantedBug(FailbackSkipped, "a failback equals the recovered VM", operations=_PLANNED),
    PlantedBug(ShutdownLies, "a planned failover loses nothing", operations=_PLANNED),
    PlantedBug(OlderComparison, "a verification finds no difference", operations=_VERIFY),
)
