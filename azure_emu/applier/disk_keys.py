"""The keys of managed disks in the process of the disk host: asked for when a disk is opened, and kept in memory.

The disk host opens disks in threads, and at its start on the trio thread, where it cannot ask the vault.  So the keys of all
managed disks, and of the disks of recovered VMs, are asked for before it starts, and that of another disk before it is
opened.

Fault contract: keys are in memory only.  A vault that cannot be reached does not stop the opening of a disk whose key is
held; a key that was revoked does.
"""

from __future__ import annotations

from pathlib import Path

import structlog
import trio

from siterig.azure_emu.disks.view import needed_key
from siterig.azure_emu.disks.view_provider import DiskKeySource
from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.waits import Waits
from siterig.blockfs.disk.disk_state import DiskState
from siterig.blockfs.transfer.data_keys import DataKeys
from siterig.blockfs.transfer.envelope import DataKey

START_S = 30.0
"""Limit of the wait for the vault at the start, below the limit of a start; then disks without a key are broken."""
ASK_AGAIN_S = 0.5

_log = structlog.get_logger(__name__)


class DiskKeys(DiskKeySource):
    """The keys of the managed disks in one folder, and of the VMs over them."""

    def __init__(self, disks: Path, vms: Path, vault: DataKeys, waits: Waits, clock: Clock = SYSTEM_CLOCK) -> None:
        """Hold no key yet.

        Args:
            disks: the folder of the managed disks.
            vms: the folder of the recovered VMs.
            vault: gives out the keys.
            waits: registers the wait for the vault.
            clock: the time.
        """
        self._disks = disks
        self._vms = vms
        self._vault = vault
        self._waits = waits
        self._clock = clock
        self._held: dict[str, DataKey] = {}
        self._errors: dict[str, RigError] = {}

    async def load_all(self) -> None:
        """Ask for the keys of all encrypted disks; wait a while for a vault that cannot be reached."""
        end_s = self._clock.real.trio_time_s() + START_S
        for disk_id in await trio.to_thread.run_sync(self._needed):
            await self._load_patiently(disk_id, end_s)

    def _needed(self) -> list[str]:
        """Return the ids of the managed disks whose keys are needed, of which some may be deleted."""
        folders = [path for path in self._disks.glob("[!.]*") if path.is_dir()] if self._disks.is_dir() else []
        needed = {folder.name for folder in folders if needed_key(folder) is not None}
        for path in self._vms.glob("*/*.disk"):
            try:
                state = DiskState.load(path)
            except (RigError, OSError):
                continue  # the disk host reports it when it opens the disk
            if state.key is not None:
                needed.add(state.key.managed_disk)
        return sorted(needed)

    async def _load_patiently(self, disk_id: str, end_s: float) -> None:
        with self._waits.waiting("keys", disk=disk_id) as because:
            while True:
                try:
                    with self._clock.real.fail_after(max(end_s - self._clock.real.trio_time_s(), 0.0)):
                        await self.load(disk_id)
                except trio.TooSlowError:
                    self._errors.setdefault(disk_id, _not_asked(disk_id))
                except RigError as exc:
                    because(exc)
                    if exc.recoverable and self._clock.real.trio_time_s() < end_s:
                        await self._clock.real.sleep(ASK_AGAIN_S)
                        continue
                break
        if disk_id not in self._held:
            error = self._errors[disk_id]
            _log.error("disk_key_missing", disk=disk_id, code=error.code, reason=error.message)

    async def load(self, managed_disk: str) -> None:
        try:
            key = (await self._vault.disk_key(disk_id=managed_disk)).key()
        except RigError as exc:
            if managed_disk in self._held and exc.recoverable:
                return
            self._held.pop(managed_disk, None)
            self._errors[managed_disk] = exc
            raise
        self._held[managed_disk] = key
        self._errors.pop(managed_disk, None)

    def get(self, managed_disk: str) -> DataKey:
        if managed_disk in self._held:
            return self._held[managed_disk]
        error = self._errors.get(managed_disk, _not_asked(managed_disk))
        raise RigError(error.code, error.message, recoverable=error.recoverable)


def _not_asked(disk_id: str) -> RigError:
    return RigError(Code.KeyMissing, f"the key of managed disk {disk_id} did not come from the vault", recoverable=True)
