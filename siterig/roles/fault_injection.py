"""The injector of a role, made when the first rule comes: a rig without faults does not load the fault language."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

import trio

from siterig.blockfs.core.clock import Clock
from siterig.blockfs.host.disk_host import DiskHost
from siterig.core.fault_contract import ArmedFaults, FaultInjector, FaultPlan, FaultReport
from siterig.core.paths import Layout
from siterig.rpc import directory

if TYPE_CHECKING:
    from siterig.host_faults.disk_names import DiskNames
    from siterig.host_faults.places import FilePlaces


class RunningPart(Protocol):
    """A part of an injector that works in the background."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work until cancelled."""
        ...


class MadeInjector(NamedTuple):
    """An injector, and the parts of it that work in the background."""

    injector: FaultInjector
    parts: tuple[RunningPart, ...]


class RoleInjector(FaultInjector):
    """The injector of a role; :meth:`run` must run.

    Args:
        make: makes it.
    """

    def __init__(self, make: Callable[[], MadeInjector]) -> None:
        self._make = make
        self._made: MadeInjector | None = None
        self._wanted = trio.Event()
        self._runs = trio.Event()

    async def run(self) -> None:
        """Let the injector work, until cancelled."""
        await self._wanted.wait()
        assert self._made is not None  # noqa: S101 (set before the event)
        async with trio.open_nursery() as nursery:
            for part in self._made.parts:
                await nursery.start(part.run)
            self._runs.set()

    async def _injector(self) -> FaultInjector:
        if self._made is None:
            self._made = self._make()
            self._wanted.set()
        await self._runs.wait()
        return self._made.injector

    async def arm_faults(self, *, plans: list[FaultPlan]) -> ArmedFaults:
        return await (await self._injector()).arm_faults(plans=plans)

    async def disarm_faults(self, *, names: list[str]) -> ArmedFaults:
        return await (await self._injector()).disarm_faults(names=names)

    async def set_fault_window(self, *, name: str, is_open: bool) -> ArmedFaults:
        return await (await self._injector()).set_fault_window(name=name, is_open=is_open)

    async def fault_report(self, *, after: int, epoch: str, patience_s: float) -> FaultReport:
        return await (await self._injector()).fault_report(after=after, epoch=epoch, patience_s=patience_s)


# --- the injectors of the roles -----------------------------------------------------------------------------------------


def of_disk_host(host: DiskHost, layout: Layout, role: str, clock: Clock) -> MadeInjector:
    """Return the injector of a disk host: its disks and change logs, and for recovered VMs the managed disks."""
    from siterig.faults.armed_disk_rule import disk_of_host, disks_of_host  # noqa: PLC0415
    from siterig.faults.by_layer import LayeredInjector  # noqa: PLC0415
    from siterig.faults.disk_injector import DiskInjector  # noqa: PLC0415
    from siterig.host_faults.injector import HostFileInjector  # noqa: PLC0415
    from siterig.host_faults.log_files import DiskHostLogs  # noqa: PLC0415
    from siterig.scenarios.faults.atlas import FaultAtlas  # noqa: PLC0415

    places: list[FilePlaces] = [DiskHostLogs(host.root)]
    names = None
    if role == "azure":  # the site does not load the code of managed disks
        from siterig.host_faults.store_files import ManagedDisks  # noqa: PLC0415

        names = _names(layout, role)
        places.append(ManagedDisks(layout.managed_disks, names.name_of))
    files = HostFileInjector(places, lent_layers=["store"], names=names, atlas=FaultAtlas(), clock=clock)
    disks = DiskInjector(lambda: disks_of_host(host), log=files.log, clock=clock)
    host.registry.report_opened = lambda disk: disks.disk_opened(disk_of_host(host, disk))
    return MadeInjector(LayeredInjector({"disk": disks, "log": files, "store": files}, files), (disks, files))


def of_applier(layout: Layout, clock: Clock) -> MadeInjector:
    """Return the injector of the applier: the managed disks."""
    from siterig.host_faults.injector import HostFileInjector  # noqa: PLC0415
    from siterig.host_faults.store_files import ManagedDisks  # noqa: PLC0415

    names = _names(layout, "applier")
    files = HostFileInjector([ManagedDisks(layout.managed_disks, names.name_of)], names=names, clock=clock)
    return MadeInjector(files, (files,))


def of_agent(layout: Layout, clock: Clock) -> MadeInjector:
    """Return the injector of the agent, which reads the change logs of the site."""
    from siterig.host_faults.injector import HostFileInjector  # noqa: PLC0415
    from siterig.host_faults.log_files import DiskHostLogs  # noqa: PLC0415

    files = HostFileInjector([DiskHostLogs(layout.site_disks)], lent_layers=["log"], clock=clock)
    return MadeInjector(files, (files,))


def _names(layout: Layout, role: str) -> DiskNames:
    from siterig.host_faults.disk_names import DiskNames  # noqa: PLC0415

    async def ask() -> Mapping[str, tuple[str, str]]:
        return {disk.disk_id: (disk.vm, disk.name) for disk in await directory.vault(layout, role).managed_disks()}

    return DiskNames(ask)
