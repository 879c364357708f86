"""The injector of a role, made when the first rule comes: a rig without faults does not load the fault language.

Fault contract: a role that starts while there is a director of faults has its rules before it opens a file
(:meth:`RoleInjector.begin`).  Without an answer it serves without rules, and a warning is in its log.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import structlog
import trio
from pydantic import ValidationError

from siterig.blockfs.core.clock import Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.host.disk_host import DiskHost
from siterig.core.fault_contract import (
    ASK_FOR_RULES,
    RULES_WAIT_S,
    ArmedFaults,
    DiskCopies,
    FaultInjector,
    FaultPlan,
    FaultReport,
    RoleRules,
)
from siterig.core.paths import Layout
from siterig.rpc import directory

if TYPE_CHECKING:
    from siterig.host_faults.disk_names import DiskNames
    from siterig.host_faults.places import FilePlaces

RETRY_S = 0.05
"""The delay between two questions to a role that does not run."""
NAMES_WAIT_S = 2.5
"""The time for which the first rule of managed disks waits for their names."""
_log = structlog.get_logger("faults")


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
        self._begun: list[FaultPlan] = []

    async def run(self) -> None:
        """Let the injector work, until cancelled."""
        await self._wanted.wait()
        assert self._made is not None  # noqa: S101 (set before the event)
        async with trio.open_nursery() as nursery:
            for part in self._made.parts:
                await nursery.start(part.run)
            self._runs.set()

    async def begin(self, layout: Layout, role: str, clock: Clock) -> None:
        """Arm the rules of a role that starts, before it opens a file; does nothing if there is no director of faults.

        Args:
            layout: the rig.
            role: the name of this role.
            clock: the clock of the role.
        """
        if ASK_FOR_RULES in sys.argv:
            last = _take_report(layout.last_faults(role))
            await self.arm_rules_of(directory.role_rules(layout, role), role, clock.real, last=last)

    async def arm_rules_of(self, director: RoleRules, role: str, clock: Clock, *, last: FaultReport | None = None) -> None:
        """Ask a director for the rules of a role, and arm them; returns after some seconds without an answer.

        Args:
            director: the director.
            role: the role.
            clock: the clock of the wait.
            last: the report that a former process could not send.
        """
        plans: list[FaultPlan] | None = None
        reason = "no answer"
        with clock.move_on_after(RULES_WAIT_S):
            while plans is None:
                try:
                    plans = await director.rules_of_role(role=role, last=last)
                except RigError as error:
                    reason = error.message
                    await clock.sleep(RETRY_S)
        if plans is None:
            _log.warning("served_without_fault_rules", limit_s=RULES_WAIT_S, reason=reason)
        if plans:
            self._begun = await self._arm(plans)

    async def _arm(self, plans: list[FaultPlan]) -> list[FaultPlan]:
        """Arm rules, and return them; one that cannot be armed is left out, and logged."""
        try:
            answer = await self.arm_faults(plans=plans)
        except RigError as error:
            if len(plans) == 1:
                _log.error("fault_not_armed_again", rule=plans[0].name, code=error.code, reason=error.message)
                return []
            return [armed for plan in plans for armed in await self._arm([plan])]
        for name, reason in answer.without_file.items():
            _log.error("fault_not_armed_again", rule=name, code=Code.FaultNotPossible, reason=reason)
        return [plan for plan in plans if plan.name not in answer.without_file]

    async def files_opened(self) -> None:
        """Let rules that act at once act on the disks that were opened since :meth:`begin`."""
        for plan in self._begun:
            if plan.is_open:
                try:
                    await self.set_fault_window(name=plan.name, is_open=True)
                except RigError as error:
                    _log.error("fault_failed", rule=plan.name, code=error.code, reason=error.message)
        self._begun = []

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

    async def note_copies(self, *, copies: DiskCopies) -> None:
        await (await self._injector()).note_copies(copies=copies)


def _take_report(path: Path) -> FaultReport | None:
    """Return the report that a former process left, and remove it; None if there is none that can be read."""
    try:
        data = path.read_bytes()
        path.unlink()
        return FaultReport.model_validate_json(data)
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        _log.warning("last_faults_unreadable", path=str(path), reason=str(error))
        return None


# --- the injectors of the roles -----------------------------------------------------------------------------------------


class ServedDisks:
    """The disks of the disk host of this process, which opens them after its rules were armed.

    Attributes:
        root: the folder of the disks.
        mountpoint: the folder at which they are served.
        host: the disk host; None until its disks are open.
        report_opened: called with each disk that is opened, before its guest can use it.
    """

    def __init__(self, root: Path, mountpoint: Path) -> None:
        self.root, self.mountpoint = root, mountpoint
        self.host: DiskHost | None = None
        self.report_opened: Callable[[Disk], None] = lambda _disk: None

    def all(self) -> list[Disk]:
        """Return the open disks."""
        return [] if self.host is None else self.host.registry.all_disks()

    def opened(self, disk: Disk) -> None:
        """Report a disk that was opened just now."""
        self.report_opened(disk)


def of_disk_host(served: ServedDisks, layout: Layout, role: str, clock: Clock) -> MadeInjector:
    """Return the injector of a disk host: its disks and change logs, and for recovered VMs the managed disks."""
    from siterig.faults.armed_disk_rule import disk_below  # noqa: PLC0415
    from siterig.faults.by_layer import LayeredInjector  # noqa: PLC0415
    from siterig.faults.disk_injector import DiskInjector  # noqa: PLC0415
    from siterig.host_faults.injector import HostFileInjector  # noqa: PLC0415
    from siterig.host_faults.log_files import DiskHostLogs  # noqa: PLC0415

    places: list[FilePlaces] = [DiskHostLogs(served.root)]
    names = None
    if role == "azure":  # the site does not load the code of managed disks
        from siterig.host_faults.store_files import ManagedDisks  # noqa: PLC0415

        names = _names(layout, role, clock)
        places.append(ManagedDisks(layout.managed_disks, names.name_of))
    files = HostFileInjector(places, lent_layers=["store"], names=names, clock=clock, last_report=layout.last_faults(role))
    mountpoint = served.mountpoint
    disks = DiskInjector(
        lambda: [disk_below(mountpoint, disk) for disk in served.all()],
        is_source=role == "site",
        log=files.log,
        clock=clock,
    )
    served.report_opened = lambda disk: disks.disk_opened(disk_below(mountpoint, disk))
    return MadeInjector(LayeredInjector({"disk": disks, "log": files, "store": files}, files), (disks, files))


def of_applier(layout: Layout, clock: Clock) -> MadeInjector:
    """Return the injector of the applier: the managed disks."""
    from siterig.host_faults.injector import HostFileInjector  # noqa: PLC0415
    from siterig.host_faults.store_files import ManagedDisks  # noqa: PLC0415

    names = _names(layout, "applier", clock)
    files = HostFileInjector(
        [ManagedDisks(layout.managed_disks, names.name_of)],
        names=names,
        clock=clock,
        last_report=layout.last_faults("applier"),
    )
    return MadeInjector(files, (files,))


def of_agent(layout: Layout, clock: Clock) -> MadeInjector:
    """Return the injector of the agent, which reads the change logs of the site."""
    from siterig.host_faults.injector import HostFileInjector  # noqa: PLC0415
    from siterig.host_faults.log_files import DiskHostLogs  # noqa: PLC0415

    last_report = layout.last_faults("agent")
    files = HostFileInjector([DiskHostLogs(layout.site_disks)], lent_layers=["log"], clock=clock, last_report=last_report)
    return MadeInjector(files, (files,))


def _names(layout: Layout, role: str, clock: Clock) -> DiskNames:
    from siterig.host_faults.disk_names import DiskNames  # noqa: PLC0415

    vault = directory.vault(layout, role)

    async def ask() -> Mapping[str, tuple[str, str]]:
        """Return the names; the vault may be starting, too."""
        with clock.real.move_on_after(NAMES_WAIT_S):
            while True:
                try:
                    return {disk.disk_id: (disk.vm, disk.name) for disk in await vault.managed_disks()}
                except RigError:
                    await clock.real.sleep(RETRY_S)
        raise RigError(Code.RoleUnavailable, f"the vault did not answer within {NAMES_WAIT_S:g} s", recoverable=True)

    return DiskNames(ask)
