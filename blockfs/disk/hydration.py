"""Hydration: a disk over a managed disk becomes a raw disk while guests use it.

Fault contract
--------------
* Hydration changes no byte of the disk; its log, its snapshot and ``needs_resync`` are not affected.
* The state of the disk records that it is being hydrated, so a start continues.  A block is copied before its bit in the
  overlay map is set, and a bit is durable only after its bytes (:mod:`siterig.blockfs.layers.layer`): after a kill or a
  power loss every marked block exists, and the rest is copied again.
* When all blocks are durably copied: ``NAME.top`` is renamed to ``NAME.img``, the state is ``raw``, the backing is detached,
  the maps are removed, and the pin on the managed disk is released.  Each step is durable before the next begins.
* An error that stops it (the host's disk is full, the managed disk cannot be read) stops nothing else.  It is shown, and
  the hydration is tried again.

Copying yields to guests: after a step during which the disk had requests, it pauses four times as long as the step took.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import structlog
import trio

from siterig.blockfs.contracts.counters import requests_done
from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.keyed_lock import KeyedLock
from siterig.blockfs.core.sizes import STAT_BLOCK_BYTES
from siterig.blockfs.core.waits import Waits
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_files import DiskPaths
from siterig.blockfs.files.free_space import require_free_space
from siterig.blockfs.files.os_errors import reason
from siterig.blockfs.layers.layer import data_bytes

STEP_BYTES = 4 << 20
BUSY_STEP_BYTES = 512 << 10
BUSY_PAUSES = 4
"""Seconds of pause for each second of copying, while guests use the disk."""
PAUSE_S_MIN = 0.005
SYNC_BYTES = 64 << 20
"""Bytes copied at most between two syncs; a power loss makes at most these be copied again."""
FREE_BYTES_MIN = 64 << 20
"""Free bytes of the host's disk that copying leaves to the guests."""
RETRY_S = 15.0

_log = structlog.get_logger("siterig.blockfs.disk.hydration")


class Hydrator:
    """Hydrates the disks of a host, one after the other.

    It holds the lock of the disk's name meanwhile: pins and maps are known by that name, and if the disk were removed, a new
    disk of the same name could lose its own.
    """

    def __init__(
        self,
        disks: Callable[[], list[Disk]],
        release: Callable[[str | None, DiskPaths], None],
        locks: KeyedLock,
        waits: Waits | None = None,
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Begin with no disk; :meth:`run` hydrates.

        Args:
            disks: returns the disks of the host.
            release: called with the managed disk that a hydrated disk no longer needs.
            locks: the locks of the disks' names.
            waits: the list in which a hydration that is stopped is recorded.
            clock: the time of this host.
        """
        self._disks = disks
        self._release = release
        self._locks = locks
        self._waits = waits or Waits()
        self._clock = clock.real
        self._stopped: set[tuple[str, str]] = set()
        self._wake = trio.Event()

    def wake(self) -> None:
        """Make :meth:`run` look for disks to hydrate."""
        self._wake.set()

    async def run(self) -> None:
        """Hydrate all disks that are to be hydrated, until cancelled."""
        while True:
            self._wake = trio.Event()
            self._forget_removed()
            for disk in self._disks():
                if disk.state.promoting:
                    await self.attempt(disk)
            with trio.move_on_after(RETRY_S if any(disk.state.promoting for disk in self._disks()) else float("inf")):
                await self._wake.wait()

    def _forget_removed(self) -> None:
        """Clear the waits of disks that were removed."""
        for vm, name in self._stopped - {(disk.paths.vm, disk.paths.name) for disk in self._disks()}:
            self._waits.clear("hydration", vm=vm, disk=name)
            self._stopped.discard((vm, name))

    async def attempt(self, disk: Disk) -> None:
        """Hydrate one disk wholly; an error that stops it is recorded in its ``stopped_by`` and in the waits."""
        try:
            async with self._locks.hold(str(disk.paths)):
                await self._hydrate_wholly(disk)
        except RigError as error:
            if disk.hydration.stopped_by is None or disk.hydration.stopped_by.message != error.message:
                _log.warning("hydration_stopped", disk=str(disk.paths), reason=error.code, message=error.message)
            disk.hydration.stopped_by = error
            self._stopped.add((disk.paths.vm, disk.paths.name))
            self._waits.set("hydration", error.code, error.message, vm=disk.paths.vm, disk=disk.paths.name)
        else:
            disk.hydration.stopped_by = None
            self._waits.clear("hydration", vm=disk.paths.vm, disk=disk.paths.name)

    async def _hydrate_wholly(self, disk: Disk) -> None:
        managed_disk, total_bytes = disk.state.managed_disk, disk.state.size_bytes
        try:
            await self._hydrate(disk)
            while not disk.hydration.convert_to_raw():
                await self._hydrate(disk)
            await trio.to_thread.run_sync(disk.hydration.detach_backing)
        except OSError as exc:
            if exc.errno != errno.EBADF:
                raise _stopped_by(disk, exc) from exc
            if disk.state.promoting:  # the disk was closed, because its VM was removed
                return
        await trio.to_thread.run_sync(self._release, managed_disk, disk.paths)
        _log.info("hydrated", disk=str(disk.paths), total_bytes=total_bytes)

    async def _hydrate(self, disk: Disk) -> None:
        """Copy until the disk has all blocks on stable storage."""
        unsynced, full = 0, False
        seen = requests_done(disk.c)
        while not full:
            busy, seen = requests_done(disk.c) != seen, requests_done(disk.c)
            step_bytes = BUSY_STEP_BYTES if busy else STEP_BYTES
            _check_room(disk, step_bytes)
            began_s = self._clock.trio_time_s()
            full = await trio.to_thread.run_sync(disk.hydration.hydrate, step_bytes)
            unsynced += step_bytes
            if full or unsynced >= SYNC_BYTES:
                await trio.to_thread.run_sync(disk.hydration.flush)
                unsynced = 0
            if busy and not full:
                await self._clock.sleep(max(PAUSE_S_MIN, BUSY_PAUSES * (self._clock.trio_time_s() - began_s)))


def check_room(vm: str, disks: list[Disk]) -> None:
    """Check that the disks of a VM have room for all blocks that they lack; it blocks, so call it in a thread.

    Raises:
        RigError: ``NotEnoughSpace``.
    """
    needs = []
    for disk in disks:
        if disk.state.managed_disk is not None:
            lacking_bytes = max(0, data_bytes(disk.layer) - disk.paths.file("top").stat().st_blocks * STAT_BLOCK_BYTES)
            needs.append((disk.paths.folder, lacking_bytes))
    if needs:
        needs.append((needs[0][0], FREE_BYTES_MIN))
    require_free_space(needs, f"VM {vm!r}", "to become independent of the managed disks, its disks need")


def _check_room(disk: Disk, step_bytes: int) -> None:
    found = os.statvfs(disk.paths.folder)
    free_bytes = found.f_bavail * found.f_frsize
    if free_bytes < FREE_BYTES_MIN + step_bytes:
        raise RigError(
            Code.DiskFull,
            f"hydration of disk {disk.paths}: {free_bytes >> 20} MiB are free on the host's disk, of which "
            f"{FREE_BYTES_MIN >> 20} MiB are kept for guests; it continues when there is more",
            recoverable=True,
        )


def _stopped_by(disk: Disk, exc: OSError) -> RigError:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        why = "the host's disk is full; it continues when there is room"
        return RigError(Code.DiskFull, f"hydration of disk {disk.paths}: {why}", recoverable=True)
    where = f"stopped at byte {disk.hydration.done_bytes} of {disk.size_bytes}"
    return RigError(
        Code.HostIoError,
        f"hydration of disk {disk.paths}: {where}: {reason(exc, disk.paths)}",
        recoverable=True,
    )
