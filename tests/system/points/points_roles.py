"""The vault and the applier for :mod:`tests.system.points.test_points_model`, as processes that can be killed.

``python -m tests.system.points.points_roles ROOT ROLE READY_FD PARENT_PID`` starts one.  They are the real roles, with
these differences: the cache account is a folder.  The vault's clock is a file, and its policies run only on request.
The applier's waits are short, its journal files and compaction slices are small, and it ends at a chosen step.
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
from siterig.blockfs.core.clock import Clock, SystemClock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.guests import loop_devices
from siterig.blockfs.sides.vault_link import VaultLink
from siterig.blockfs.transfer.cache_account import CacheAccount
from siterig.blockfs.transfer.part_name import Listing, PartName
from siterig.core.paths import Layout
from siterig.roles.entry import Health, run_role
from siterig.rpc import directory, server


class FolderCache(CacheAccount):
    """An account that keeps parts as files."""

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
    """Return the cache account that the source fills and the applier reads."""
    return FolderCache(layout.root / "cache")


class FileClock(SystemClock):
    """A clock that reads its wall and boot times, in nanoseconds, from a file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def wall_ns(self) -> int:
        return int(self._path.read_text())

    def boottime_ns(self) -> int:
        return int(self._path.read_text())


def clock_of(layout: Layout) -> Path:
    """Return the file with the vault's time in nanoseconds, as text; it is replaced atomically."""
    return layout.root / "wall-and-boot-times"


class Policies(Protocol):
    """A service of the vault's process: rounds of its policies."""

    async def round(self) -> bool:
        """Apply the policies once, and return True if the recovery side received all results."""
        ...


class Fuse(Protocol):
    """A service of the applier's process that ends it at a chosen step."""

    async def arm(self, *, steps: int) -> None:
        """Kill the process after so many further steps of applying, compaction and similar work; -1 disarms it."""
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
    """Make limits small, so that a short walk meets many journal files, compaction slices and checkpoints."""
    applier.COMPACT_EVERY_S, applier.RETRY_REFUSED_S, applier.RETRY_RECOVERABLE_S = 0.05, 0.2, 0.2
    journal.JOURNAL_FILE_BYTES = 60_000
    history.SLICE_BYTES = 80_000
    checkpoints.RECORDS_MIN = 5


async def run_applier(layout: Layout, *, clock: Clock, health: Health, task_status: trio.TaskStatus[None]) -> None:
    """Run the applier like :func:`siterig.roles.applier.run`, with the differences that the module names."""
    _small()
    cache = cache_of(layout)
    work = RecoveryService(applier.Applier(layout.managed_disks, cache, directory.applier_reports(layout)), cache)
    faces = {"RecoverySide": (RecoverySide, work), "Fuse": (Fuse, _FUSE)}
    with failpoint.all_armed(_FUSE.reached, "store."):
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: work.run(poll_s=0.02, net_s=0.1, task_status=task_status))
            await nursery.start(server.serve, faces, layout.socket("applier"))
            task_status.started()


async def run_vault(layout: Layout, *, clock: Clock, health: Health, task_status: trio.TaskStatus[None]) -> None:
    """Run the vault like :func:`siterig.roles.vault.run`, with the differences that the module names."""
    vault = Vault(
        f"sqlite:///{layout.vault_db}",
        keys=layout.vault_keys,
        provider=directory.provider(layout),
        recovery=directory.recovery_side(layout),
        azure_host=directory.azure(layout),
        shut_down=loop_devices.shutdown,
        clock=FileClock(clock_of(layout)),
        waits=health.waits,
    )
    faces = {
        "VaultApi": (VaultApi, server.joined(VaultApi, vault.operations)),
        "VaultLink": (VaultLink, vault.reports),
        "ApplierReports": (ApplierReports, vault.reports),
        "Policies": (Policies, vault.retention),
    }
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(vault.run)
            # A vault's care for its policies begins with this step.  The walk requests all other steps itself.
            await vault.context.database.transact(lambda session: rig_clock.advance(session, vault.context.clock))
            await nursery.start(server.serve, faces, layout.socket("vault"))
            task_status.started()
    finally:
        vault.close()


if __name__ == "__main__":
    run_role(sys.argv[2], {"applier": run_applier, "vault": run_vault}[sys.argv[2]])
