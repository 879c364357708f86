"""The supervisor: starts the roles, each after those it needs, keeps them running, and ends them all.

Fault contract: it can be killed at any moment.  Its roles die with it (PDEATHSIG); mounts and loop devices stay, and the
next ``up`` or ``down`` finds them in the kernel's lists (:mod:`siterig.supervisor.cleanup`).  The lock on ``DIR/lock`` ends
with the process, so a stale process id is never believed.
"""

from __future__ import annotations

import os
import signal as signals
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import structlog
import trio

from siterig.azure_emu.contracts.reports import RoleState, RoleStatus
from siterig.azure_emu.vault.context.roles import role_error
from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.waits import Wait
from siterig.core.fault_contract import ASK_FOR_RULES
from siterig.core.paths import Layout
from siterig.core.process_setup import FILES_MAX
from siterig.core.supervisor_contract import (
    RigStatus,
    RoleChange,
    RoleChanges,
    RoleFault,
    StartFaults,
    SupervisorControl,
)
from siterig.rpc import server
from siterig.supervisor import cleanup
from siterig.supervisor.process import Child, execute
from siterig.supervisor.role_faults import (
    LastingFaults,
    RoleChangeLog,
    children_of,
    continue_process,
    stop_process,
)

DEATHS_MAX = 5
DEATHS_WINDOW_S = 60.0
BACKOFF_FIRST_S = 0.2
CHECK_EVERY_S = 2.0
ANSWER_S = 2.0
"""A role that does not answer two health checks in a row, each within this time, is hung."""
STATUS_ANSWER_S = 1.5
"""``status`` asks every role again; a role that does not answer within this time is reported as hung."""
REPORT_EVERY_S = 10.0
REPORT_AGAIN_S = 3.0
"""The time after which a report is repeated that did not reach the vault."""
RELEASE_S = 2.0
"""The time after which the release of guests ends the faults that may keep their disks waiting."""
DIRECTOR_WAIT_S = 5.0
"""The time for which the start of a role waits for a director of faults that is being started again."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class RoleSpec:
    """A role and its command, to which the readiness descriptor and the parent's process id are added."""

    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    """Roles that must be ready before the first start of this one."""
    answers_checks: bool = False
    """True if it answers health checks (:mod:`siterig.supervisor.process`)."""
    has_program: bool = False
    """True if a program that it starts does the work: faults of the process stop and limit both."""
    asks_for_rules: bool = False
    """True if it asks the director of faults for its rules when it starts."""
    on_demand: bool = False
    """True if it is started by the first ``start_role``, and not with the rig; until then no list of roles has it."""


@dataclass
class _Role:
    """The current state of a role.  Only the role's own task changes ``child``; other tasks can change the rest."""

    spec: RoleSpec
    clock: Clock
    on_change: Callable[[], None]
    """Called after each change of the state or the waits."""
    faults: LastingFaults
    state: RoleState = "waiting"
    since_ns: int = 0
    child: Child | None = None
    restarts: int = 0
    detail: str = ""
    waits: list[Wait] = field(default_factory=list)
    unanswered: int = 0
    """The number of health checks in a row without an answer; the first one was sent at ``silent_ns``."""
    silent_ns: int = 0
    hold: bool = False
    killed: bool = False
    """True if the supervisor killed it on purpose; that end does not count as a failure."""
    killed_by: str = ""
    """The fault rule that sent a signal to the process; empty if none did."""
    is_wanted: bool = True
    """False for a role on demand that nobody has asked for yet."""
    deaths: deque[float] = field(default_factory=deque)
    changed: trio.Event = field(default_factory=trio.Event)
    wake: trio.Event = field(default_factory=trio.Event)

    def __post_init__(self) -> None:
        self.since_ns = self.clock.wall_ns()
        self.is_wanted = not self.spec.on_demand

    def enter(self, state: RoleState, detail: str = "", *, since_ns: int | None = None) -> None:
        if state != self.state:
            self.since_ns = self.clock.wall_ns() if since_ns is None else since_ns
        self.state, self.detail = state, detail
        if state not in ("ready", "hung"):
            self.waits, self.unanswered = [], 0
        self._changed()

    def _changed(self) -> None:
        self.changed.set()
        self.changed = trio.Event()
        self.on_change()

    def answered(self, waits: list[Wait]) -> None:
        self.unanswered = 0
        if self.state == "hung":
            self.waits = waits
            self.enter("ready")
        elif self.waits != waits:
            self.waits = waits
            self._changed()

    def did_not_answer(self, asked_ns: int, problem: str | None, *, times: int) -> None:
        if not self.unanswered:
            self.silent_ns = asked_ns
        self.unanswered += times
        if self.unanswered >= 2:
            at = datetime.fromtimestamp(self.silent_ns / 1e9, UTC)
            self.enter("hung", problem or f"has not answered since {at:%H:%M:%S} UTC", since_ns=self.silent_ns)

    async def wait_for_state(self, *states: RoleState) -> None:
        while self.state not in states:
            await self.changed.wait()

    def status(self) -> RoleStatus:
        return RoleStatus(
            name=self.spec.name,
            state=self.state,
            pid=self.child.pid if self.child else None,
            restarts=self.restarts,
            detail="; ".join(text for text in (self.detail, self.faults.words(self.spec.name)) if text),
            since_ns=self.since_ns,
            waits=self.waits,
        )


async def _no_faults(_role: str) -> StartFaults:
    return StartFaults()


async def _no_director() -> None:
    pass


class Supervisor(SupervisorControl):
    """The supervisor of one rig.

    ``start(name, command, log)`` starts the process of a role.  ``announce(role, state)`` is called for each step of the
    start.  ``report(roles)`` sends the states of all roles to the vault; a report that fails is not repeated, the next one
    replaces it.  ``start_faults(role)`` asks the director of faults, the role ``director``, for the faults of a start, and
    ``end_faults()`` lets it remove all rules.
    ``clock``: the wall time of states; the waits of the supervisor are real, because they are about processes.
    """

    def __init__(
        self,
        layout: Layout,
        specs: Sequence[RoleSpec],
        *,
        announce: Callable[[str, str], None] = lambda _role, _state: None,
        report: Callable[[list[RoleStatus]], Awaitable[None]] | None = None,
        start: Callable[[str, Sequence[str], Path], Awaitable[Child]] = execute,
        start_faults: Callable[[str], Awaitable[StartFaults]] = _no_faults,
        end_faults: Callable[[], Awaitable[object]] = _no_director,
        director: str = "",
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._layout = layout
        self._start_child = start
        self._clock, self._real = clock, clock.real
        self._report = report
        self._news = trio.Event()
        self._faults = LastingFaults()
        self._changes = RoleChangeLog()
        self._start_faults, self._end_faults = start_faults, end_faults
        self._director, self._asks_before_starts = director, False
        self._roles = {spec.name: _Role(spec, clock, self._wake_reporter, self._faults) for spec in specs}
        self._armed_faults = 0
        self._demands, self._demanded = trio.open_memory_channel[_Role](len(specs))
        self._announce = announce
        self._role_tasks = trio.CancelScope()
        self._role_tasks_ended = trio.Event()
        self._stopping = trio.Lock()
        self._finished = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the rig until :meth:`stop_all` or until cancelled; at the end nothing is left running or mounted.

        ``started`` means that every role is ready.  If a role fails to start, the rig ends.
        """
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._serve_control)
                try:
                    await self._supervise_all(task_status)
                finally:
                    self._role_tasks_ended.set()
                await self._finished.wait()
        finally:
            with trio.CancelScope(shield=True):
                await self._end_all(force=True)

    async def _supervise_all(self, task_status: trio.TaskStatus[None]) -> None:
        with self._role_tasks:
            async with trio.open_nursery() as nursery:
                for role in self._wanted():  # in this order: the first ones take longest to be ready
                    await nursery.start(self._first_start, role)
            task_status.started()
            async with trio.open_nursery() as nursery:
                for role in self._wanted():
                    self._demands.send_nowait(role)
                if self._report is not None:
                    nursery.start_soon(self._report_often, self._report)
                async for role in self._demanded:
                    nursery.start_soon(self._supervise_role, role)
                    if role.spec.answers_checks:
                        nursery.start_soon(self._check_often, role)

    def _wanted(self) -> list[_Role]:
        return [role for role in self._roles.values() if role.is_wanted]

    async def _check_often(self, role: _Role) -> None:
        while True:
            await self._real.sleep(CHECK_EVERY_S)
            await self._check(role, ANSWER_S)

    async def _check(self, role: _Role, limit_s: float, *, times: int = 1) -> None:
        """Make one health check of a running role; a check without an answer in time counts ``times`` times."""
        child, asked_ns = role.child, self._clock.wall_ns()
        if child is None or role.state not in ("ready", "hung") or self._faults.is_paused(role.spec.name):
            return
        answer = None
        with self._real.move_on_after(limit_s):
            answer = await child.health()
        if role.child is not child or role.state not in ("ready", "hung") or self._faults.is_paused(role.spec.name):
            return  # it ended or was stopped meanwhile
        if answer is None or answer.problem is not None:
            role.did_not_answer(asked_ns, None if answer is None else answer.problem, times=times)
        else:
            role.answered(answer.waits)

    def _wake_reporter(self) -> None:
        self._news.set()

    async def _report_often(self, report: Callable[[list[RoleStatus]], Awaitable[None]]) -> None:
        while True:
            self._news, limit_s = trio.Event(), REPORT_EVERY_S
            try:
                await report([role.status() for role in self._wanted()])
            except RigError as error:
                limit_s = min(REPORT_AGAIN_S, REPORT_EVERY_S)
                _log.debug("role_states_not_reported", reason=error.message)
            with self._real.move_on_after(limit_s):
                await self._news.wait()

    async def _first_start(self, role: _Role, *, task_status: trio.TaskStatus[None]) -> None:
        if role.spec.needs:
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED
        for need in role.spec.needs:
            await self._roles[need].wait_for_state("ready")
        await self._start(role, task_status=task_status)

    async def _serve_control(self, *, task_status: trio.TaskStatus[None]) -> None:
        services = {"SupervisorControl": (SupervisorControl, self)}
        await server.serve(services, self._layout.socket("supervisor"), until=self._finished.wait, task_status=task_status)

    async def _start(self, role: _Role, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start the role once; raise ``RigError`` if it does not become ready.  ``started``: its process exists."""
        name = role.spec.name
        role.enter("starting")
        self._announce(name, "starting")
        faults = await self._faults_of_start(role)
        if faults.delay_ns:
            role.enter("starting", f"its start is delayed by fault {faults.fault!r}")
            with self._real.move_on_after(faults.delay_ns / 1e9):
                while not role.hold:
                    role.wake = trio.Event()
                    await role.wake.wait()
        self._check_not_held(role)
        child = role.child = await self._start_child(name, self._command(role), self._layout.log(name))
        task_status.started()
        try:
            self._check_not_held(role)
            self._limit(role, child)
            if not faults.when_ready:
                await self._disturb(role, child, faults)
            await child.ready()
        except BaseException:
            if self._faults.is_paused(name):
                continue_process(child, with_program=role.spec.has_program)
            await child.end()
            await child.close()
            role.child = None
            self._faults.process_ended(name)
            raise
        role.enter("ready")
        self._announce(name, "ready")
        _log.info("role_ready", role=name, pid=child.pid)
        self._changes.note(RoleChange(role=name, change="RoleReady", pid=child.pid))
        if faults.when_ready:
            await self._disturb(role, child, faults)

    def _command(self, role: _Role) -> tuple[str, ...]:
        """Return the command of a role, with the limit of its files, and the order to ask for its fault rules."""
        files_max = self._faults.limits(role.spec.name).get("files_max")
        words: tuple[str, ...] = () if files_max is None else (f"{FILES_MAX}={files_max}",)
        director = self._roles.get(self._director)
        if role.spec.asks_for_rules and director is not None and director.is_wanted:
            words += (ASK_FOR_RULES,) if director.state not in ("held", "failed") else ()
        return (*role.spec.command, *words)

    def _check_not_held(self, role: _Role) -> None:
        """End a start if the role is to be held down since it began."""
        if role.hold:
            role.killed = True
            raise RigError(Code.RoleHeld, f"role {role.spec.name} is held down", role=role.spec.name)

    def _limit(self, role: _Role, child: Child) -> None:
        programs = children_of(child.pid) if role.spec.has_program else []
        self._faults.limit(role.spec.name, [child.pid, *programs])

    async def _faults_of_start(self, role: _Role) -> StartFaults:
        """Ask the director for the faults of a start; a director that does not answer must not keep a role down."""
        if not self._asks_before_starts or role.spec.name == self._director:
            return StartFaults()
        try:
            with self._real.move_on_after(DIRECTOR_WAIT_S):
                await self._roles[self._director].wait_for_state("ready")
            faults = await self._start_faults(role.spec.name)
        except RigError as error:
            _log.warning("start_faults_unknown", role=role.spec.name, reason=error.message)
            return StartFaults()
        for fault in faults.lasting:
            if not fault.pause:
                self._faults.put(fault)
        return faults

    async def _disturb(self, role: _Role, child: Child, faults: StartFaults) -> None:
        """Stop a process that was started, or send it a signal."""
        for fault in faults.lasting:
            if fault.pause:
                self._faults.put(fault)
                await self._pause(role, child)
        if faults.kill is not None:
            role.killed_by = faults.fault
            child.send(signals.Signals[faults.kill])

    async def _supervise_role(self, role: _Role) -> None:
        """Restart a started role after each end, for as long as the rig is up."""
        while True:
            if role.child is not None:
                ending = await role.child.ending()
                pid = role.child.pid
                await role.child.close()
                role.child = None
                self._faults.process_ended(role.spec.name)
                self._changes.note(RoleChange(role=role.spec.name, change="RoleEnded", pid=pid))
                await self._after_death(role, ending)
            try:
                await self._start(role)
            except RigError as error:
                if role.killed_by:  # a rule that kills each start must not use up the processor
                    await self._real.sleep(BACKOFF_FIRST_S)
                await self._after_death(role, error.message)

    async def _after_death(self, role: _Role, reason: str) -> None:
        """Wait until the role is to be started again."""
        if role.killed_by:
            role.killed, reason = True, f"{reason} (fault {role.killed_by!r})"
        role.killed_by = ""
        _log.warning("role_ended", role=role.spec.name, reason=reason, on_purpose=role.killed)
        if not role.killed:
            role.restarts += 1
            role.deaths.append(self._real.trio_time_s())
        role.killed = False
        while role.deaths and role.deaths[0] < self._real.trio_time_s() - DEATHS_WINDOW_S:
            role.deaths.popleft()
        role.wake = trio.Event()
        if len(role.deaths) >= DEATHS_MAX and not role.hold:
            role.enter("failed", f"ended {DEATHS_MAX} times within {DEATHS_WINDOW_S:g} s; last: {reason}")
            await role.wake.wait()
        elif not role.hold:
            role.enter("restarting", reason)
            if role.deaths:
                with self._real.move_on_after(BACKOFF_FIRST_S * 2 ** (len(role.deaths) - 1)):
                    await role.wake.wait()
        while role.hold:
            role.wake = trio.Event()
            role.enter("held", "" if self._faults.holds(role.spec.name) else "killed on purpose")
            await role.wake.wait()

    def _role(self, name: str) -> _Role:
        if name not in self._roles or not self._roles[name].is_wanted:
            known = ", ".join(role.spec.name for role in self._wanted())
            raise RigError(Code.NoSuchRole, f"unknown role {name!r}; there are: {known}")
        return self._roles[name]

    async def status(self) -> RigStatus:
        async with trio.open_nursery() as nursery:
            for role in self._wanted():
                if role.spec.answers_checks:
                    nursery.start_soon(partial(self._check, role, STATUS_ANSWER_S, times=2))
        roles = [role.status() for role in self._wanted()]
        return RigStatus(folder=str(self._layout.root), pid=os.getpid(), roles=roles, faults=self._armed_faults)

    async def wait_for_steady_state(self, *, name: str) -> RoleStatus:
        role = self._role(name)
        await role.wait_for_state("ready", "hung", "held", "failed", "stopped")
        return role.status()

    async def kill_role(self, *, name: str, hold: bool = False) -> RoleStatus:
        role = self._role(name)
        role.hold = hold
        child = role.child
        if child is not None:
            role.killed = True
            child.send(signals.SIGKILL)
            while role.child is child:
                await role.changed.wait()
        elif hold and role.state in ("starting", "restarting", "failed"):
            role.wake.set()  # it is down already; its task now holds it instead of starting it
            await role.wait_for_state("held")
        return role.status()

    async def start_role(self, *, name: str) -> RoleStatus:
        if name in self._roles and not self._roles[name].is_wanted:
            self._roles[name].is_wanted = True
            self._demands.send_nowait(self._roles[name])
        role = self._role(name)
        holder = self._faults.holds(name)
        if holder is not None:
            text = f"role {name} is held down by fault {holder!r}; remove it with siterig fault remove"
            raise RigError(Code.RoleHeld, text, role=name)
        role.hold = False
        if role.state != "ready":
            role.deaths.clear()
            if role.state in ("held", "failed"):
                role.enter("restarting")
            role.wake.set()
            await role.wait_for_state("ready", "hung", "held", "failed", "stopped")
        error = role_error(role.status())
        if error is not None:
            raise error
        return role.status()

    # --- faults of processes ----------------------------------------------------------------------------------------

    async def signal_role(self, *, name: str, signal: str, fault: str) -> RoleStatus | None:
        role = self._role(name)
        child = role.child
        if child is None:
            return None
        role.killed_by = fault
        child.send(signals.Signals[signal])
        if signal == "SIGKILL":
            while role.child is child:
                await role.changed.wait()
        return role.status()

    async def impose_role_fault(self, *, fault: RoleFault) -> None:
        role = self._role(fault.role)
        self._faults.put(fault)
        child = role.child
        if fault.hold:
            await self.kill_role(name=fault.role, hold=True)
        elif child is not None:
            self._limit(role, child)
            if fault.pause:
                await self._pause(role, child)
        role.enter(role.state, role.detail)

    async def _pause(self, role: _Role, child: Child) -> None:
        await stop_process(child, self._real, with_program=role.spec.has_program)
        if role.state == "ready":
            role.enter("hung")

    async def lift_role_faults(self, *, fault: str) -> None:
        for lifted in self._faults.take(fault):
            role = self._roles[lifted.role]
            child = role.child
            if lifted.hold and self._faults.holds(lifted.role) is None:
                role.hold = False
                role.enter("restarting")
                role.wake.set()
            if child is None:
                continue
            self._limit(role, child)
            if lifted.pause and not self._faults.is_paused(lifted.role):
                continue_process(child, with_program=role.spec.has_program)
                await self._check(role, ANSWER_S)
            role.enter(role.state, role.detail)

    async def role_faults(self) -> list[RoleFault]:
        return self._faults.all()

    async def ask_before_starts(self, *, ask: bool) -> None:
        self._asks_before_starts = ask

    async def note_armed_faults(self, *, count: int) -> None:
        self._armed_faults = count

    async def role_changes(self, *, after: int, patience_s: float) -> RoleChanges:
        with self._real.move_on_after(patience_s):
            await self._changes.wait(after)
        return self._changes.after(after)

    async def stop_all(self) -> list[str]:
        done = await self._end_all(force=False)
        self._finished.set()
        return done

    async def _end_all(self, *, force: bool) -> list[str]:
        """Release the guests' mounts, which need the disk servers, and then end the roles, the last started first."""
        async with self._stopping:
            done: list[str] = []
            cut_off = False
            try:
                done += await self._release_guests()
            except RigError as error:
                if not force:
                    raise
                _log.warning("guests_cut_off", reason=error.message)
                cut_off = True
            self._role_tasks.cancel()
            await self._role_tasks_ended.wait()
            for role in reversed(self._roles.values()):
                if role.child is not None:
                    if self._faults.is_paused(role.spec.name):
                        continue_process(role.child, with_program=role.spec.has_program)
                    # A disk host that ends cleanly would unmount below the busy guests, and their loop devices would no
                    # longer show to which disk they belong.  A killed one leaves its mount in place.
                    await (role.child.kill() if cut_off else role.child.end())
                    await role.child.close()
                    role.child = None
                    done.append(f"ended {role.spec.name}")
                role.enter("stopped")
            # Mounts without a server can only be unmounted lazily.
            done += await cleanup.release_guests(self._layout.root)
            done += await cleanup.unmount_stale(self._layout.root)
            for line in done:
                _log.info("rig_ended", action=line)
            return done

    async def _release_guests(self) -> list[str]:
        """Release the guests' mounts; faults and signals that keep their disks waiting end if that takes long."""
        done: list[str] = []
        failure: RigError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_faults_in_the_way)
            try:
                done = await cleanup.release_guests(self._layout.root)
            except RigError as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return done

    async def _end_faults_in_the_way(self) -> None:
        while True:
            await self._real.sleep(RELEASE_S)
            for role in self._roles.values():
                if role.child is not None:
                    continue_process(role.child, with_program=role.spec.has_program)
            if self._armed_faults:
                _log.warning("faults_ended", reason="the guests of the rig are not released")
                try:
                    await self._end_faults()
                except RigError as error:  # it is tried again
                    _log.warning("faults_not_ended", code=error.code, reason=error.message)
