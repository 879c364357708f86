"""The vault and the applier of a rig for :mod:`tests.system.points.test_points_model`, each as a process that can be killed.

``python -m tests.system.points.points_roles ROOT ROLE READY_FD PARENT_PID``.  They are the real ones, but: the cache
account is a folder; the vault's clock is in a file, and it looks after its policies when it is asked to; the applier
waits for nothing long, makes small journal files and folds, and ends at a step of its work that it was told.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Protocol

import trio

from siterig.azure_emu.applier import applier
from siterig.azure_emu.applier.service import RecoveryService
from siterig.azure_emu.contracts.recovery_side import RecoverySide
from siterig.azure_emu.contracts.reports import ApplierReports
from siterig.azure_emu.disks import checkpoints, history, journal
from siterig.azure_emu.vault.context import rig_clock
from siterig.azure_emu.vault.model.api import VaultApi
from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.core import failpoint
from siterig.blockfs.core.clock import SystemClock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.guests import loop_devices
from siterig.blockfs.transfer.part_name import Listing, PartName
from siterig.core.paths import Layout
from siterig.replication.contracts.ports import VaultLink
from siterig.roles.entry import Health, run_role
from siterig.rpc import directory, server


class FolderCache:
    """Parts as files: a :class:`siterig.blockfs.transfer.cache_account.CacheAccount`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def put(self, part: PartName, data: bytes, *, replace: bool = False) -> bool:
        path = self._folder / part.blob()
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden = path.with_name(f".{path.name}")
        hidden.write_bytes(data)
        hidden.rename(path)
        return True

    async def list(self, disk_id: str) -> Listing:
        found = (self._folder / disk_id).glob("*/*/[0-9]*")
        return Listing.of(disk_id, [(str(path.relative_to(self._folder)), path.stat().st_size) for path in found])

    async def get(self, part: PartName) -> bytes:
        try:
            return (self._folder / part.blob()).read_bytes()
        except FileNotFoundError:
            raise RigError(Code.PartNotFound, f"no part {part.blob()}") from None

    async def delete(self, part: PartName) -> None:
        (self._folder / part.blob()).unlink(missing_ok=True)


def cache_of(layout: Layout) -> FolderCache:
    """Where the source puts parts, and the applier finds them."""
    return FolderCache(layout.root / "cache")


class FileClock(SystemClock):
    """A clock whose wall and boot times stand in a file, in nanoseconds."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def wall_ns(self) -> int:
        return int(self._path.read_text())

    def boottime_ns(self) -> int:
        return int(self._path.read_text())


def clock_of(layout: Layout) -> Path:
    """The vault's time in nanoseconds, as text; replaced as a whole."""
    return layout.root / "clock"


class Policies(Protocol):
    """A face of the vault's process."""

    async def round(self) -> bool:
        """Keep to the policies once; whether the recovery side was told everything."""
        ...


class Fuse(Protocol):
    """A face of the applier's process."""

    async def arm(self, *, steps: int) -> None:
        """Be killed when so many more steps of applying, folding and the like are done."""
        ...


class _Fuse:
    def __init__(self) -> None:
        self._left = -1

    async def arm(self, *, steps: int) -> None:
        self._left = steps

    def reached(self, _name: str) -> None:
        if self._left >= 0:
            self._left -= 1
            if self._left < 0:
                os.kill(os.getpid(), signal.SIGKILL)


_FUSE = _Fuse()


def _small() -> None:
    """A short walk meets many journal files, slices of folds, and checkpoints."""
    applier.COMPACT_EVERY_S, applier.RETRY_REFUSED_S, applier.RETRY_RECOVERABLE_S = 0.05, 0.2, 0.2
    journal.JOURNAL_FILE_BYTES = 60_000
    history.SLICE_BYTES = 80_000
    checkpoints.RECORDS_MIN = 5


async def run_applier(layout: Layout, *, health: Health, task_status: trio.TaskStatus[None]) -> None:
    """As :func:`siterig.roles.applier.run`."""
    _small()
    cache = cache_of(layout)
    work = RecoveryService(applier.Applier(layout.managed_disks, cache, directory.applier_reports(layout)), cache)
    faces = {"RecoverySide": (RecoverySide, work), "Fuse": (Fuse, _FUSE)}
    with failpoint.all_armed(_FUSE.reached, "store."):
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: work.run(poll_s=0.02, task_status=task_status))
            await nursery.start(server.serve, faces, layout.socket("applier"))
            task_status.started()


async def run_vault(layout: Layout, *, health: Health, task_status: trio.TaskStatus[None]) -> None:
    """As :func:`siterig.roles.vault.run`."""
    vault = Vault(
        f"sqlite:///{layout.vault_db}",
        provider=directory.provider(layout),
        recovery=directory.recovery_side(layout),
        azure_host=directory.azure(layout),
        shut_down=loop_devices.shutdown,
        clock=FileClock(clock_of(layout)),
        waits=health.waits,
    )
    faces = {
        "VaultApi": (VaultApi, vault),
        "VaultLink": (VaultLink, vault.reports),
        "ApplierReports": (ApplierReports, vault.reports),
        "Policies": (Policies, vault.retention),
    }
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(vault.run)
            # The first thing that a vault's look after its policies does; the walk asks for the rest of it itself.
            await vault.context.database.transact(lambda session: rig_clock.advance(session, vault.context.clock))
            await nursery.start(server.serve, faces, layout.socket("vault"))
            task_status.started()
    finally:
        vault.close()


if __name__ == "__main__":
    run_role({"applier": run_applier, "vault": run_vault}[sys.argv[2]])
