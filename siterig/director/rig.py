"""A rig under faults: the director with the injectors of every layer that the rig has, and the files of the run.

An injector of a further layer is made here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import structlog
import trio

from siterig.azure_emu.contracts.moments import MomentFeed
from siterig.azure_emu.vault.model.api import StatusApi
from siterig.blockfs.contracts.control import DiskHostControl
from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import RigError
from siterig.core.fault_contract import FaultInjector, FaultPlan, FaultReport, RoleRules
from siterig.core.supervisor_contract import SupervisorControl
from siterig.director.director import FaultDirector
from siterig.director.disk_copies import DiskCopiesWatch
from siterig.director.injectors import LayerInjector
from siterig.director.machine_faults import MachineInjector
from siterig.director.process_faults import ProcessInjector
from siterig.director.remote import RemoteInjector
from siterig.director.rig_events import RigEvents
from siterig.director.run_file import (
    InjectionFile,
    read_atlas_seed,
    read_injections,
    read_run,
    restore_run,
    state_of,
    write_atlas_seed,
    write_run,
)
from siterig.scenarios.faults.schedule import FaultSchedule

SAVE_EVERY_S = 0.5
_log = structlog.get_logger("faults")


class DirectedRig(RoleRules):
    """The director of one rig, and everything that it needs.

    Args:
        run_file: the state of the run, for the next director.
        injection_file: gets one line for each injection.
        atlas_file: the seed of the rig's fault atlas.
        supervisor: the supervisor of the rig.
        moments: the events of the vault.
        items: the protected items of the vault.
        hosts: the disk hosts.
        injectors: the injector of each role that has one.
        note_reboot: lets later processes of a host belong to a new boot.
        others: makes the injectors of further layers.
        clock: the clock of the schedule and its windows; retries of calls take real time.
    """

    def __init__(
        self,
        *,
        run_file: Path,
        injection_file: Path,
        atlas_file: Path,
        supervisor: SupervisorControl,
        moments: MomentFeed,
        items: StatusApi,
        hosts: Mapping[str, DiskHostControl],
        injectors: Mapping[str, FaultInjector],
        note_reboot: Callable[[str], None],
        others: Callable[[FaultSchedule], list[LayerInjector]] = lambda _schedule: [],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._run_file, self._atlas_file, self._clock, self._supervisor = run_file, atlas_file, clock, supervisor
        self._saved = read_run(run_file)
        self._is_saved = True
        seed = None if self._saved is None else self._saved.seed
        self.schedule = FaultSchedule(seed, clock=clock, atlas_seed=read_atlas_seed(atlas_file))
        if self._saved is not None:
            restore_run(self.schedule, self._saved, read_injections(injection_file))
        self.schedule.subscribe(InjectionFile(injection_file))
        former = None if self._saved is None else self._saved.roles
        self.remote = RemoteInjector(
            self.schedule, injectors, former=former, look_for_copies=self._look_for_copies, clock=clock.real
        )
        self.processes = ProcessInjector(self.schedule, supervisor)
        self._machines = MachineInjector(supervisor=supervisor, hosts=hosts, injectors=injectors, note_reboot=note_reboot)
        layers: list[LayerInjector] = [self.remote, self.processes, self._machines, *others(self.schedule)]
        self.director = FaultDirector(self.schedule, layers, clock=clock, save=self._save, note_count=self._note_count)
        self._copies = DiskCopiesWatch(
            self.schedule, vault=items, supervisor=supervisor, tell=self.remote.note_copies, clock=clock.real
        )
        self._events = RigEvents(
            self.schedule,
            vault=moments,
            supervisor=supervisor,
            site=hosts["site"],
            role_ready=self._role_is_ready,
            happened=self._copies.note_change,
            clock=clock.real,
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Continue the run of a director that was killed, if there was one, and direct until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.director.run)
            if self._saved is not None:
                await self.director.resume()
            nursery.start_soon(partial(self._events.run, self.director.next_change))
            nursery.start_soon(partial(self._copies.run, self.director.next_change))
            nursery.start_soon(self._save_often)
            task_status.started()

    async def rules_of_role(self, *, role: str, last: FaultReport | None = None) -> list[FaultPlan]:
        return [*self.remote.rules_of(role, last), *self._machines.rules_of(role)]

    async def _look_for_copies(self) -> None:
        await self._copies.look()

    async def _role_is_ready(self, name: str) -> None:
        self.remote.role_is_ready(name)
        await self._machines.role_is_ready(name)

    async def _note_count(self, count: int) -> None:
        with contextlib.suppress(RigError):  # the supervisor ends, and the rig with it
            await self._supervisor.note_armed_faults(count=count)
        await self._events.wait_followed()

    def _save(self) -> None:
        try:
            if self.schedule.atlas_seed is not None:
                write_atlas_seed(self._atlas_file, self.schedule.atlas_seed)
            write_run(self._run_file, state_of(self.schedule, self.remote.saved()))
            self._is_saved = True
        except OSError as error:
            self._is_saved = False
            # The host's disk is full: the run continues, and only the next director would miss it.
            _log.error("fault_run_not_saved", path=str(self._run_file), reason=str(error))

    async def _save_often(self) -> None:
        """Save the counts of operations, which change without a change of rules, and a run that could not be saved."""
        while True:
            if self._is_saved:
                await self.director.next_change().wait()
            self._save()
            await self._clock.real.sleep(SAVE_EVERY_S)
