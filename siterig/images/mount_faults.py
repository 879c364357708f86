"""The faults of the disks of one process, as a mount: rules, the calls that change them, and the verdicts at the end."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import structlog
import trio

from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.host.standalone import StandAlone
from siterig.core.fault_contract import FaultControl, FaultInjector, FaultPlan, InjectedFault
from siterig.core.power_contract import PowerControl
from siterig.director.director import FaultDirector
from siterig.director.injectors import LayerInjector, not_possible
from siterig.faults.armed_disk_rule import OpenDisk
from siterig.faults.by_layer import LayeredInjector
from siterig.faults.disk_injector import DiskInjector
from siterig.faults.disk_power import DiskPower
from siterig.host_faults.injector import HostFileInjector
from siterig.host_faults.log_files import StandaloneLog
from siterig.host_faults.places import FilePlaces
from siterig.images.mount_sockets import listening
from siterig.scenarios.faults.catalog import LayerName
from siterig.scenarios.faults.records import FaultVerdict, Injection
from siterig.scenarios.faults.rules import FaultRule, FaultRules
from siterig.scenarios.faults.schedule import ArmedRule, FaultListener, FaultSchedule

_log = structlog.get_logger("siterig.images.mount_faults")
POWER_REMEDY = "mount it with siterig mount --power-loss"
LOG_REMEDY = "a change log: siterig mount --log"
POSITION_EVERY_S = 0.05
"""The delay between two looks at the position of the disks, while a rule waits for one."""


class _CheckingInjector(FaultInjector, Protocol):
    """An injector that can refuse a rule before anything is changed."""

    def check(self, plan: FaultPlan) -> None:
        """Refuse a rule that cannot be armed here."""
        ...


class _LocalDisks(LayerInjector):
    """The injector of the disk of this process, and of its change log, as the director uses it."""

    is_remote = True

    def __init__(
        self,
        schedule: FaultSchedule,
        disks: DiskInjector,
        layers: Mapping[LayerName, _CheckingInjector],
        all_: FaultInjector,
    ) -> None:
        self.layers, self._disks = tuple(layers), disks
        self._schedule, self._of_layer, self._injector = schedule, layers, all_
        self._collecting = trio.Lock()
        self._epoch, self._sequence, self._dropped = "", 0, 0
        self._in_force: set[str] = set()

    async def check(self, rule: FaultRule) -> None:
        for key, trigger in (("after", rule.when.after), ("until", rule.when.until)):
            if trigger is None:
                continue
            allowed = ["mark", *(["position"] if "log" in self._of_layer else []), "time", "fault"]
            if trigger.kind not in allowed:
                why = "events are those of a rig" if trigger.kind == "event" else "positions are those of a change log"
                raise not_possible(rule, f"when.{key}: '{trigger}': {why}; allowed here: {', '.join(allowed)}")
        self._of_layer[rule.where.layer].check(_plan(rule.label, rule, 0, is_open=False))

    async def arm(self, rules: Sequence[ArmedRule]) -> None:
        awaited = _awaited([armed.rule for armed in self._schedule.armed()])
        plans = [
            _plan(armed.label, armed.rule, armed.seed, is_open=armed.window.is_open).model_copy(
                update={"is_awaited": armed.label in awaited}
            )
            for armed in rules
        ]
        await self._disks.hold_faults(awaited & self._in_force)  # rules that nothing followed until now
        await self._injector.arm_faults(plans=plans)
        self._in_force |= {armed.label for armed in rules}
        await self.collect()

    async def disarm(self, rules: Sequence[ArmedRule]) -> None:
        await self._injector.disarm_faults(names=[armed.label for armed in rules])
        await self.collect()
        self._in_force -= {armed.label for armed in rules}

    async def window_opened(self, armed: ArmedRule) -> None:
        await self._injector.set_fault_window(name=armed.label, is_open=True)
        await self.collect()

    async def window_closed(self, armed: ArmedRule) -> None:
        await self._injector.set_fault_window(name=armed.label, is_open=False)

    async def collect(self) -> None:
        async with self._collecting:
            while True:
                report = await self._injector.fault_report(after=self._sequence, epoch=self._epoch, patience_s=0)
                self._epoch, self._sequence = report.epoch, report.sequence
                if report.dropped > self._dropped:
                    _log.warning("faults_too_many_to_record", count=report.dropped - self._dropped)
                    self._dropped = report.dropped
                for injected in report.injections:
                    self._adopt(injected)
                if not report.injections:
                    break
            # Not those of a former rule that had the name of one which is about to be armed.
            known = self._in_force & {armed.label for armed in self._schedule.armed()}
            for name, count in report.counts.items():
                if name in known:
                    self._schedule.adopt_counts(
                        name,
                        matched=count.matched,
                        fired=count.fired,
                        last_ns=count.last_ns,
                        waiting=count.waiting,
                        spared=count.spared,
                    )

    def _adopt(self, injected: InjectedFault) -> None:
        self._schedule.adopt_injection(
            injected.name,
            operation=injected.operation,
            n=injected.n,
            time_ns=injected.time_ns,
            position=injected.position,
            done=injected.done,
            ranges=injected.ranges,
        )


def _plan(name: str, rule: FaultRule, seed: int, *, is_open: bool) -> FaultPlan:
    return FaultPlan(name=name, rule=rule.document(), seed=seed, is_open=is_open)


def _awaited(rules: Sequence[FaultRule]) -> set[str]:
    """Return the labels of the rules that other rules follow, by their names or by marks that they set."""
    triggers = [trigger for rule in rules for trigger in (rule.when.after, rule.when.until) if trigger is not None]
    faults = {trigger.name for trigger in triggers if trigger.kind == "fault"}
    marks = {trigger.name for trigger in triggers if trigger.kind == "mark"}
    return faults | {rule.label for rule in rules if rule.what.mark in marks}


class _Report(FaultListener):
    def __init__(self, report: Callable[[Injection], None]) -> None:
        self._report = report

    def injected(self, injection: Injection) -> None:
        self._report(injection)


class LocalFaults:
    """The faults of the disks of this process, and of their change logs; :meth:`run` must run.

    Args:
        list_disks: returns the disks.
        places: the files of their change logs.
        seed: the seed of random choices; None for a random one.
        report: called with each injection.
        clock: the clock of windows and injections.
        remedies: how to have the faults of layers that are not here.

    Attributes:
        control: the calls that change rules.
        seed_is_given: the user chose the seed.
    """

    def __init__(
        self,
        list_disks: Callable[[], Sequence[OpenDisk]],
        places: Sequence[FilePlaces],
        *,
        seed: int | None = None,
        report: Callable[[Injection], None] = lambda _injection: None,
        clock: Clock = SYSTEM_CLOCK,
        remedies: Mapping[LayerName, str] | None = None,
    ) -> None:
        self.seed_is_given = seed is not None
        self._schedule = FaultSchedule(seed, clock=clock)
        self._schedule.subscribe(_Report(report))
        self._log = HostFileInjector(places, must_match=True, clock=clock)
        self._disks = DiskInjector(list_disks, must_match=True, injected=self._injected, log=self._log.log, clock=clock)
        self._list_disks, self._clock = list_disks, clock
        layers: dict[LayerName, _CheckingInjector] = {"disk": self._disks}
        if places:
            layers["log"] = self._log
        self._local = _LocalDisks(self._schedule, self._disks, layers, LayeredInjector(layers, self._log))
        self._director = FaultDirector(self._schedule, [self._local], clock=clock, remedies=remedies)
        self.control: FaultControl = self._director

    @property
    def seed(self) -> int:
        """The seed of random choices."""
        return self._schedule.seed

    @property
    def armed(self) -> list[str]:
        """The names of the rules that are armed."""
        return [armed.label for armed in self._schedule.armed()]

    async def _injected(self, _injected: Sequence[InjectedFault]) -> None:
        """Put everything in force that follows from faults, before the operations continue that are held for that."""
        await self._local.collect()
        await self._director.settled()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Record injections, and open and close windows, until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._disks.run)
            await nursery.start(self._log.run)
            nursery.start_soon(self._follow_log)
            nursery.start_soon(self._follow_position)
            await nursery.start(self._director.run)
            task_status.started()

    async def _follow_log(self) -> None:
        """Adopt the faults of the log, which happen in other threads."""
        while True:
            news = self._log.log.next_news()
            await self._local.collect()
            await news.wait()

    async def _follow_position(self) -> None:
        """Note the newest position of the disks while a rule waits for one."""
        while True:
            change = self._director.next_change()
            if all(trigger.kind != "position" for trigger in self._schedule.awaited()):
                await change.wait()
                continue
            positions = [disk.faults.core.options.positions.value for disk in self._list_disks()]
            self._schedule.note_position(max(positions, default=-1))
            await self._clock.sleep(POSITION_EVERY_S)

    async def arm(self, rules: FaultRules) -> None:
        """Arm the rules of a file.

        Raises:
            RigError: ``InvalidFault`` or ``FaultNotPossible``.
        """
        if rules.fault:
            await self.control.add_faults(rules=[rule.document() for rule in rules.fault])

    async def verdicts(self) -> list[FaultVerdict]:
        """Return for each rule, also a removed one, whether it fired as often as it should."""
        return await self.control.verdicts()


class MountFaults(LocalFaults):
    """The faults of the one disk of a mount; :meth:`run` must run.

    Args:
        alone: the disk.
        path: its file in the mount.
        seed: the seed of random choices; None for a random one.
        report: called with each injection.
        clock: the clock of windows and injections.
    """

    def __init__(
        self,
        alone: StandAlone,
        path: Path,
        *,
        seed: int | None = None,
        report: Callable[[Injection], None],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        paths = alone.disk.paths
        disks = [OpenDisk(vm=paths.name, name=paths.name, faults=alone.disk.faults, path=path, title=paths.name)]
        places = [StandaloneLog(paths.folder, paths.name)] if alone.disk.state.tracked else []
        remedies: dict[LayerName, str] = {} if places else {"log": LOG_REMEDY}
        super().__init__(lambda: disks, places, seed=seed, report=report, clock=clock, remedies=remedies)
        self._power = DiskPower(lambda: disks, remedy=POWER_REMEDY)

    async def answer_calls(
        self,
        device: str,
        note: Callable[[str], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Answer calls of other processes, until cancelled.  The server is loaded at the first call.

        Args:
            device: the device number of the mount.
            note: receives the reason if no calls can be answered.
            task_status: gets the start: other processes find the socket from then on, or never.
        """
        with ExitStack() as stack:
            try:
                listener, path = stack.enter_context(listening(device))
            except RigError as error:
                note(f"siterig fault --mnt and siterig power-loss cannot reach this mount: {error.message}")
                task_status.started()
                return
            task_status.started()
            await trio.lowlevel.wait_readable(listener)
            await self._serve(listener, path)

    async def _serve(self, listener: socket.socket, path: Path) -> None:
        from siterig.rpc import server  # it takes longer to load than everything else of a mount

        services = {"FaultControl": (FaultControl, self.control), "PowerControl": (PowerControl, self._power)}
        await server.serve(services, path, listener=listener)
