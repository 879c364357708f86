"""The injector of a disk host, made when the first rule comes: a rig without faults does not load the fault language."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from siterig.blockfs.host.disk_host import DiskHost
from siterig.core.fault_contract import ArmedFaults, FaultInjector, FaultPlan, FaultReport

if TYPE_CHECKING:
    from siterig.faults.disk_injector import DiskInjector


class HostInjector(FaultInjector):
    """The injector of one disk host; :meth:`run` must run."""

    def __init__(self, host: DiskHost) -> None:
        self._host = host
        self._injector: DiskInjector | None = None
        self._made = trio.Event()
        self._runs = trio.Event()

    async def run(self) -> None:
        """Record injections, until cancelled."""
        await self._made.wait()
        assert self._injector is not None  # noqa: S101 (set before the event)
        async with trio.open_nursery() as nursery:
            await nursery.start(self._injector.run)
            self._runs.set()

    async def _disks(self) -> FaultInjector:
        if self._injector is None:
            from siterig.faults.armed_disk_rule import disk_of_host, disks_of_host  # noqa: PLC0415
            from siterig.faults.disk_injector import DiskInjector  # noqa: PLC0415

            injector = DiskInjector(lambda: disks_of_host(self._host))
            self._host.registry.report_opened = lambda disk: injector.disk_opened(disk_of_host(self._host, disk))
            self._injector = injector
            self._made.set()
        await self._runs.wait()
        return self._injector

    async def arm_faults(self, *, plans: list[FaultPlan]) -> ArmedFaults:
        return await (await self._disks()).arm_faults(plans=plans)

    async def disarm_faults(self, *, names: list[str]) -> ArmedFaults:
        return await (await self._disks()).disarm_faults(names=names)

    async def set_fault_window(self, *, name: str, is_open: bool) -> ArmedFaults:
        return await (await self._disks()).set_fault_window(name=name, is_open=is_open)

    async def fault_report(self, *, after: int, epoch: str, patience_s: float) -> FaultReport:
        return await (await self._disks()).fault_report(after=after, epoch=epoch, patience_s=patience_s)
