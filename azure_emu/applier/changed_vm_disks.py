"""Reports to the vault what other programs did to the disks of recovered VMs, as the recovery side's disk host noticed it.

Fault contract: what cannot be reported yet is kept, and reported again until the vault has it; after a kill of the host only
what it notices at its next start is reported.  The disk's own state has it in any case (``needs_resync``).
"""

from __future__ import annotations

import structlog
import trio

from siterig.azure_emu.contracts.ports import DamageReports
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.disk.disk_files import DiskPaths
from siterig.blockfs.disk.disk_options import log_changed

RETRY_S = 1.0
_log = structlog.get_logger("siterig.azure_emu.applier.changed_vm_disks")


class ChangedVmDisks:
    """The changes that are not reported yet.  One trio thread."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, str], str] = {}
        self._news = trio.Event()

    def note(self, paths: DiskPaths, what: str) -> None:
        """Another program has changed a VM's disk, or it cannot be opened."""
        log_changed(paths, what)
        self._waiting.setdefault((paths.vm, paths.name), what)
        self._news.set()

    async def report(self, reports: DamageReports) -> None:
        """Until cancelled."""
        while True:
            await self._news.wait()
            self._news = trio.Event()
            for (vm, disk), what in list(self._waiting.items()):
                try:
                    await reports.vm_disk_changed(vm=vm, disk=disk, what=what)
                except RigError as exc:
                    _log.info("changed_disk_not_reported_yet", code=exc.code, reason=exc.message)
                    self._news.set()
                    await trio.sleep(RETRY_S)
                    break
                del self._waiting[vm, disk]
