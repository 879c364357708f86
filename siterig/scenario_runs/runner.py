"""Runs a scenario: brings its rig up, runs the timeline concurrently with the workloads, and evaluates what is expected.

**Order.**  The rig starts, the VMs are created, the fault rules are armed (one that cannot be armed ends the run here), the
workloads start, and the VMs with ``protect = true`` are protected.  Then the time of the timeline begins.  Its entries run
one after the other: each waits for its moment, then does its operation.  At the end the states are awaited, then the data
is checked, then the fault rules must have fired.

**Cleanup.**  Whatever ends the run, also Ctrl-C: fault rules are removed, workloads end, disks are unmounted and detached,
and the rig ends.  If this process is killed, the rig and the workloads end by themselves.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from siterig.azure_emu.vault.model.resources import Event, Job
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.documents.quantities import duration_text
from siterig.core.failures import unwrap_rig_error
from siterig.scenario_runs.conditions import Conditions, Observation
from siterig.scenario_runs.expectations import Expectations
from siterig.scenario_runs.machines import Machines
from siterig.scenario_runs.operations import OperationFailedError, Operations
from siterig.scenario_runs.records import RunRecords
from siterig.scenario_runs.scenario_rig import ScenarioRig
from siterig.scenario_runs.watcher import Watcher
from siterig.scenarios.contracts.scenario_result import ScenarioResult
from siterig.scenarios.faults.records import FaultVerdict
from siterig.scenarios.files.scenario import ScenarioDocument
from siterig.scenarios.files.scenario_files import ScenarioFile
from siterig.scenarios.files.timeline_tables import TimelineEntry
from siterig.scenarios.files.topology import SECOND_NS

WITHIN_NS = 60 * SECOND_NS
PROOF_EXPECT_NS = 3 * SECOND_NS
"""The longest wait for a state at the end of a run whose mechanism is switched off: it shall fail, not wait."""
_POLL_S = 0.1
_CLEAR_S = 5.0
_REMOVE_S = 60.0
SET_UP = "set-up"
"""The stage before the timeline; an error there does not prove anything about the scenario."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The settings of a run.

    Args:
        seed: the seed of random choices.
        without_mechanism: the mechanism that the scenario tests is switched off.
    """

    seed: int
    without_mechanism: bool = False


class ScenarioRun:
    """One run of a scenario on a rig that is down and has no VM."""

    def __init__(self, file: ScenarioFile, rig: ScenarioRig, records: RunRecords, options: RunOptions) -> None:
        self._file, self._rig, self._records, self._options = file, rig, records, options
        self._scenario: ScenarioDocument = file.scenario.without_mechanism() if options.without_mechanism else file.scenario
        self._marks: list[str] = []
        self._has_faults = bool(self._scenario.fault) or any(entry.rule for entry in self._scenario.timeline)
        self._machines = Machines(self._scenario, rig, records)
        self._conditions = Conditions(rig, self._machines, self._marks, self._scenario.fault_names)
        self._operations = Operations(self._scenario, rig, self._machines, records, self._marks)
        self._watcher = Watcher(rig, records, self._operations.clock, self._has_faults)
        self._stage, self._ran_too_long = SET_UP, False
        self._jobs: list[Job] = []
        self._events: list[Event] = []
        self._verdicts: list[FaultVerdict] = []

    async def run(self) -> ScenarioResult:
        """Run it; errors of the rig and failed checks are in the result."""
        started, began_s = SYSTEM_CLOCK.utc(), SYSTEM_CLOCK.trio_time_s()
        error: str | None = None
        left: list[str] = []
        try:
            error = await self._limited()
            await self._collect()
        finally:
            left = await self._clean_up()
        checks = self._records.checks
        has_failed = error is not None or not all(check.ok for check in checks)
        if self._options.without_mechanism:
            flaw = self._flaw_of_proof(error, left)
            has_failed, error = has_failed and flaw is None, flaw or error
        elif left:
            has_failed, error = True, error or "; ".join(left)
        return ScenarioResult(
            name=self._file.name,
            title=self._file.scenario.title,
            file=str(self._file.path),
            sentences=list(self._file.scenario.sentences),
            seed=self._options.seed,
            ok=not has_failed,
            error=error,
            without_mechanism=self._options.without_mechanism,
            started=started.isoformat(timespec="seconds"),
            duration_s=SYSTEM_CLOCK.trio_time_s() - began_s,
            clock=self._operations.clock.text,
            checks=checks,
            moments=sorted(self._records.moments, key=lambda moment: moment.at_s),
            rpo=self._records.rpo,
            measures=self._records.measures,
            jobs=self._jobs,
            events=self._events,
            injections=self._watcher.injections,
            verdicts=self._verdicts,
        )

    def _flaw_of_proof(self, error: str | None, failures: list[str]) -> str | None:
        """Return the reason for which a failed run says nothing about the mechanism that was switched off."""
        if self._stage == SET_UP:
            return f"the timeline did not begin: {error}"
        if self._ran_too_long:
            return error
        return f"the cleanup failed: {'; '.join(failures)}" if failures else None

    async def _limited(self) -> str | None:
        """Run within the time limit; return the error that ended the run."""
        limit_ns = self._scenario.time_limit
        with SYSTEM_CLOCK.move_on_after(limit_ns / SECOND_NS):
            try:
                await self._watched()
            except (RigError, ExceptionGroup) as caught:
                failure = unwrap_rig_error(caught)
                if failure is None:
                    raise
                text = f"{self._stage}: {failure.code}: {failure.message}"
                self._records.say("operation", text, "bad")
                return text
            return None
        self._ran_too_long = True
        return f"{self._stage}: {Code.ScenarioTimedOut}: the run did not end within {duration_text(limit_ns)} (time_limit)"

    async def _watched(self) -> None:
        await self._set_up()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watcher.run)
            await self._protect()
            self._records.begin_timeline()
            await self._timeline()
            await self._evaluate()
            nursery.cancel_scope.cancel()

    # --- set-up ---------------------------------------------------------------------------------------------------

    async def _set_up(self) -> None:
        records, began_s = self._records, self._records.now()
        await self._rig.start(lambda _role, _state: None)
        records.say("rig", "the rig is up", began_s=began_s)
        await self._operations.create_vms()
        for table in self._scenario.workload:
            if table.start:
                await self._machines.boot(table.vm, "site")
        if self._has_faults:
            await self._rig.start_director()
            await self._rig.faults.add_faults(
                rules=[rule.document() for rule in self._scenario.fault], seed=self._options.seed
            )
            for rule in self._scenario.fault:
                records.say("fault", f"armed: {rule.words()}")
        for table in self._scenario.workload:
            if table.start:
                await self._machines.start_load(table.name)

    async def _protect(self) -> None:
        for vm in self._scenario.topology.vm:
            if vm.protect:
                began_s = self._records.now()
                with _within(f"protect {vm.name}", WITHIN_NS):
                    await self._operations.protect_vm(vm.name)
                self._records.say("operation", f"{vm.name} is protected", "good", began_s=began_s)

    # --- timeline -------------------------------------------------------------------------------------------------

    async def _timeline(self) -> None:
        async with trio.open_nursery() as nursery:
            for number, entry in enumerate(self._scenario.timeline, 1):
                self._stage = f"timeline[{number}] {entry.label}"
                await self._wait_for(entry)
                if entry.background:
                    nursery.start_soon(self._do, entry)
                else:
                    await self._do(entry)

    def _within_ns(self, entry: TimelineEntry, *, is_wait: bool = False) -> int:
        within_ns = WITHIN_NS if entry.within is None else entry.within
        return min(within_ns, self._scenario.proof.within) if is_wait and self._options.without_mechanism else within_ns

    async def _wait_for(self, entry: TimelineEntry) -> None:
        """Wait for the moment of an entry; the wait for ``after`` and ``when`` is limited."""
        began_s, base = self._records.now(), self._conditions.baseline()
        if entry.delay is not None:
            await SYSTEM_CLOCK.sleep(entry.delay / SECOND_NS)
        if entry.at is not None:
            await SYSTEM_CLOCK.sleep(max(0.0, entry.at / SECOND_NS - self._records.now()))
        seen = Observation(True, "")
        with _within(entry.label, self._within_ns(entry, is_wait=True), lambda: seen.text):
            if entry.after is not None:
                while not (seen := await self._conditions.reached(entry.after, self._records.now())).ok:
                    await SYSTEM_CLOCK.sleep(_POLL_S)
            if entry.when is not None:
                while not (seen := await self._conditions.holds(entry.when, base)).ok:
                    await SYSTEM_CLOCK.sleep(_POLL_S)
        if entry.do == "wait":
            text = f"{entry.label}: {seen.text}" if seen.text else entry.label
            self._records.say("operation", text, "good", began_s=began_s)

    async def _do(self, entry: TimelineEntry) -> None:
        """Do the operation of an entry; one that must fail is a check."""
        if entry.do == "wait":
            return
        began_s = self._records.now()
        try:
            with _within(entry.label, self._within_ns(entry)):
                await self._operations.do(entry)
        except RigError as error:
            codes = (*(error.codes if isinstance(error, OperationFailedError) else ()), str(error.code))
            if entry.fails is None:
                raise
            ok = any(fnmatch.fnmatchcase(code, entry.fails) for code in codes)
            self._records.say("operation", entry.label, "info", began_s=began_s, is_shown=False)
            self._records.check(entry.label, f"{entry.label} fails with {entry.fails}", ok, f"{error.code}: {error.message}")
            return
        self._records.say("operation", entry.label, "good", began_s=began_s)
        if entry.fails is not None:
            self._records.check(entry.label, f"{entry.label} fails with {entry.fails}", False, "it succeeded")

    # --- end ------------------------------------------------------------------------------------------------------

    async def _evaluate(self) -> None:
        self._stage = "expect"
        expect = self._scenario.expect
        if self._options.without_mechanism:
            expect = expect.model_copy(update={"within": min(expect.within, PROOF_EXPECT_NS)})
        expectations = Expectations(expect, self._conditions, self._operations, self._machines, self._records)
        await expectations.states(self._conditions.baseline())
        await expectations.data()
        expectations.measured()
        expectations.retries(self._watcher.retries)
        if self._has_faults:
            self._verdicts = await self._rig.faults.verdicts()
            expectations.verdicts(self._verdicts)

    async def _collect(self) -> None:
        """Collect jobs, events and injections; a rig that is down has none to give."""
        with SYSTEM_CLOCK.move_on_after(_CLEAR_S):
            try:
                await self._watcher.look()
                self._jobs, self._events = await self._rig.vault.jobs(), await self._rig.vault.events()
                if self._has_faults and not self._verdicts:
                    self._verdicts = await self._rig.faults.verdicts()
            except RigError as error:
                self._records.say("rig", f"jobs and events cannot be listed: {error.message}", "bad")

    async def _clean_up(self) -> list[str]:
        """Remove faults, end workloads, release disks, end the rig; return the failures."""
        left: list[str] = []
        with trio.CancelScope(shield=True):
            if self._has_faults:
                with SYSTEM_CLOCK.move_on_after(_CLEAR_S, shield=True):
                    try:
                        await self._rig.faults.clear_faults()
                    except RigError as error:
                        self._records.say("fault", f"faults were not removed: {error.message}")
            left += await self._machines.release_all()
            await self._rig.stop()
            with SYSTEM_CLOCK.move_on_after(_REMOVE_S, shield=True):
                try:
                    await self._rig.remove_blobs()
                except RigError as error:
                    left.append(f"the blobs of the rig are still in the storage account: {error.message}")
        return left


@contextmanager
def _within(what: str, limit_ns: int, seen: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Limit a block's time; at its end ``ScenarioTimedOut`` is raised with the last observation."""
    with SYSTEM_CLOCK.move_on_after(limit_ns / SECOND_NS) as scope:
        yield
    if scope.cancelled_caught:
        last = seen()
        text = f"{what}: not within {duration_text(limit_ns)}" + (f"; last seen: {last}" if last else "")
        raise RigError(Code.ScenarioTimedOut, text)
