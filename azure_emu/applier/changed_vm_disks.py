"""Reports changes that other programs made to the disks of recovered VMs, as the recovery side's disk host noticed them.

Fault contract: a report that fails is kept and repeated until the vault has it.  After a kill of the disk host, only the
changes that it notices at its next start are reported.  The state of the disk records the change in any case
(``needs_resync``).
"""

from __future__ import annotations

import structlog
import trio

from siterig.azure_emu.contracts.reports import DamageReports
from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.disk.disk_files import DiskPaths
from siterig.blockfs.disk.disk_options import log_changed

RETRY_S = 1.0
_log = structlog.get_logger("siterig.azure_emu.applier.changed_vm_disks")


class ChangedVmDisks:
    """The changes that are not reported yet; for one trio thread."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._waiting: dict[tuple[str, str], str] = {}
        self._news = trio.Event()

    def note(self, paths: DiskPaths, what: str) -> None:
        """Record that another program changed a VM's disk, or that it cannot be opened."""
        log_changed(paths, what)
        self._waiting.setdefault((paths.vm, paths.name), what)
        self._news.set()

    async def report(self, reports: DamageReports) -> None:
        """Report the changes until cancelled."""
        while True:
            await self._news.wait()
            self._news = trio.Event()
            for (vm, disk), what in list(self._waiting.items()):
                try:
                    await reports.vm_disk_changed(vm=vm, disk=disk, what=what)
                except RigError as exc:
                    _log.info("changed_disk_not_reported_yet", code=exc.code, reason=exc.message)
                    self._news.set()
                    await self._clock.real.sleep(RETRY_S)
                    break
                del self._waiting[vm, disk]
