"""The replication of one VM: the task that goes through its phases, and the orders that change them.

Consistency: ``_working`` is held while a copy, a resync or a cycle runs, so these never overlap.  An order changes the
durable phase first, then cancels the running work; work that has just finished changes the phase only if it is still the
phase that it worked for (:meth:`Replica._finish`), with no checkpoint in between.

``_snapshotting`` is held while something uses the snapshot of the VM: a copy, a resync or a verification.  An order cancels
a running verification, and the copy that it ordered begins when its snapshot is removed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import TypeVar

import structlog
import trio

from siterig.blockfs.contracts.control import CutInfo, TagKind
from siterig.blockfs.contracts.verification import Verification
from siterig.blockfs.core.clock_reading import SECOND_NS
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.progress import VmProgress
from siterig.blockfs.transfer.part_name import PartName
from siterig.replication.engine.context import AgentContext
from siterig.replication.engine.disk_copy import check_vouched_for
from siterig.replication.engine.initial import replicate_initially
from siterig.replication.engine.outbox import Outbox
from siterig.replication.engine.progress_tracker import ProgressTracker
from siterig.replication.engine.relationship import Relationship, ReplicationPhase
from siterig.replication.engine.resync import resynchronize
from siterig.replication.engine.retry import ResyncNeeded, as_rig_error
from siterig.replication.engine.vault_reporter import VaultReporter
from siterig.replication.replicas.copy_result import CopyResult
from siterig.replication.replicas.cycle_times import CycleTimes
from siterig.replication.replicas.delta import DeltaCycle
from siterig.replication.replicas.disk_joining import DiskJoiner
from siterig.replication.replicas.disk_removal import remove_disks
from siterig.replication.replicas.verifying import verify_disks

T = TypeVar("T")

RESYNC_STOPPED = "ResynchronizationFailed"
"""The reason for which a resync is due after one that was stopped."""
PAUSED_CHECK_S = 30.0
"""The time after which a paused VM's logs are checked again, and the vault is asked whether it is still paused."""
KEY_AGAIN_S = 30.0
"""The time after which a cycle that a revoked key stopped is tried again."""
_ASK_AGAIN_S = 1.0
_PLACES = ("retry", "vault", "verify", "watermarks")
"""Places of waits that last longer than one block of code."""

_log = structlog.get_logger(__name__)


class Replica:
    """Replication of one VM that has a relationship in the book."""

    def __init__(self, context: AgentContext, vm: str, *, resumed: bool, drop_keys: Callable[[str], None]) -> None:
        """Make the replica; after a restart (``resumed``) it first asks the vault whether to replicate the VM.

        ``drop_keys`` drops the data keys of a disk that the cache account uses.
        """
        self.vm = vm
        self._context = context
        self._ask_first = resumed
        self._tracker = ProgressTracker(vm, context.clock)
        self._reports = VaultReporter(context, vm)
        self._outbox = Outbox(context, context.replicated(vm), self._tracker)
        self._times = CycleTimes(vm)
        self._cycle = DeltaCycle(context, vm, self._outbox, self._reports, self._tracker)
        self._working = trio.Lock()
        self._joiner = DiskJoiner(
            context,
            vm,
            working=self._working,
            may_work=lambda: not (self._ask_first or self._record.paused),
            drop_keys=drop_keys,
            tracker=self._tracker,
        )
        self._activity = trio.CancelScope()
        self._manual = trio.CancelScope()
        self._life = trio.CancelScope()
        self._ended = trio.Event()
        self._snapshotting = trio.Lock()
        self._verifying = trio.CancelScope()
        self._verified: ProgressTracker | None = None
        self._copy_result = CopyResult()
        self._failures = 0
        self._critical = False
        self._retries_ordered = 0
        self._retry_wait = trio.CancelScope()
        self._cycle_at_s: float | None = None
        """The begin of the last scheduled cycle, on the time line of ``Clock.trio_time_s``."""
        self._next_cycle_at_s: float | None = None

    @property
    def _record(self) -> Relationship:
        return self._context.book.get(self.vm)

    async def run(self) -> None:
        """Work through the phases until stopped."""
        try:
            with self._life:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._joiner.run)
                    await self._go_through_phases()
        finally:
            self._copy_result.resolve(RigError(Code.Interrupted, f"the replication of VM {self.vm!r} was removed"))
            for place in _PLACES:
                self._context.waits.clear(place, vm=self.vm)
            self._ended.set()

    async def _go_through_phases(self) -> None:
        while True:
            phase = self._record.phase
            with trio.CancelScope() as self._activity:
                await self._act(phase)

    async def stop(self) -> None:
        """End the task and any cycle; return when nothing runs any more."""
        self._life.cancel()
        self._manual.cancel()
        self._verifying.cancel()
        await self._ended.wait()
        async with self._working, self._snapshotting:
            pass

    @property
    def has_copied(self) -> bool:
        """True once the initial replication is done, until the VM is suspended."""
        return self._record.phase in ("delta", "resync", "resync-required")

    async def copy(self, phase: ReplicationPhase, *, limited: bool = False) -> None:
        """Order an initial replication or a resync, or join it; return when every part is in the cache account.

        ``limited``: a resync may trust the dirty bitmap of an abandoned log.
        """
        current = self._record.phase
        if phase == "initial" and current == "delta":
            return  # done long ago
        if current not in ("initial", "resync") or (phase == "resync" and current == "initial") or self._critical:
            # A resync that replaced an initial replication stays a resync.
            await self._order("resync" if current == "resync" else phase, limited=limited)
        await self._copy_result.wait()

    async def stop_copy(self) -> None:
        """Stop a copy; return when none is running, and its snapshot is removed: the next one begins another."""
        if self._record.phase == "initial":
            await self._order("created")
        elif self._record.phase == "resync":
            await self._order("resync-required", reason=RESYNC_STOPPED)
        else:
            return
        await self._end_snapshot()

    async def suspend(self) -> None:
        """Stop all work for this VM; return when none is running, and no snapshot is left."""
        if self._record.phase != "suspended":
            await self._order("suspended")
            await self._end_snapshot()

    async def _end_snapshot(self) -> None:
        await self._joiner.stop_work()
        async with self._snapshotting:
            with suppress(RigError):  # a host that is away has lost the snapshot
                await self._context.replicated(self.vm).end_snapshot()

    async def pause(self) -> None:
        """Stop the cycles until :meth:`unpause`; return when none is running."""
        if self._record.phase not in ("delta", "resync-required"):
            raise RigError(
                Code.InvalidState,
                f"VM {self.vm!r} is in phase {self._record.phase!r}; it can be paused in the phases 'delta' and "
                "'resync-required'",
            )
        if not self._record.paused:
            self._context.book.update(self.vm, paused=True)
            self._context.waits.clear("retry", vm=self.vm)
            self._critical = False
            _log.info("paused", vm=self.vm)
            self._activity.cancel()
            self._manual.cancel()
        await self._joiner.stop_work()
        async with self._working:
            pass

    async def unpause(self) -> None:
        """Continue the cycles, with one at once."""
        if self._record.paused:
            self._context.book.update(self.vm, paused=False)
            _log.info("resumed", vm=self.vm)
            self._activity.cancel()
            self._joiner.reconsider()

    def set_disks(self, names: list[str] | None) -> None:
        """Change the disks that are replicated, before a copy; None: all disks.  A cycle that runs is interrupted."""
        if self._record.replicated != names:
            removed = {name: at for name, at in self._record.removed.items() if names is not None and name not in names}
            self._context.book.update(self.vm, replicated=names, removed=removed)
            _log.info("replicated_disks_changed", vm=self.vm, disks=names)
            if self._record.phase == "delta":
                self._activity.cancel()

    async def set_schedule(self, *, interval_s: float, app_consistent_every_s: float | None) -> None:
        """Change the schedule; a suspended VM is then to be replicated again, and a copy must be ordered."""
        self.change_schedule(interval_s=interval_s, app_consistent_every_s=app_consistent_every_s)
        if self._record.phase == "suspended":
            # The old stream does not describe disks that were used elsewhere meanwhile.
            self._context.book.update(self.vm, disks=[], joining=None, paused=False)
            await self._order("created")

    def change_schedule(self, *, interval_s: float, app_consistent_every_s: float | None) -> None:
        """Change the schedule of the cycles, now or later; a cycle that is interrupted by this is sent by the next one."""
        record = self._record
        if (record.interval_s, record.app_consistent_every_s) == (interval_s, app_consistent_every_s):
            return
        self._context.book.update(self.vm, interval_s=interval_s, app_consistent_every_s=app_consistent_every_s)
        _log.info("schedule_changed", vm=self.vm, interval_s=interval_s, app_consistent_every_s=app_consistent_every_s)
        if record.phase == "delta":
            self._activity.cancel()

    async def replicate_now(
        self,
        kind: TagKind,
        name: str,
        request_id: str | None = None,
        then: Callable[[CutInfo], None] = lambda _cut: None,
    ) -> CutInfo:
        """Run one cycle now, without retries; its success also ends a Critical state.

        ``then`` is called when the cut is sent, and before any other cycle can make one.
        """
        self._check_in_delta()
        with trio.CancelScope() as scope:
            async with self._working:
                self._check_in_delta()
                self._manual = scope
                try:
                    cut = await self._cycle.run_ordered(kind, name, request_id=request_id)
                    then(cut)
                except OSError as exc:
                    raise as_rig_error(exc) from exc
                except ResyncNeeded as exc:
                    self._require_resync(exc.reason)
                    raise RigError(Code.ResyncRequired, f"VM {self.vm!r} must be resynchronized: {exc.reason}") from exc
            if self._failures:
                self._critical = False
                self._activity.cancel()
                await self._succeeded()
            return cut
        why = "replication was paused" if self._record.paused else f"phase {self._record.phase!r} was ordered"
        raise RigError(Code.Interrupted, f"VM {self.vm!r}: the cycle was interrupted: {why} meanwhile")

    def retry_now(self) -> bool:
        """Repeat failed work at once, in place of the wait of the retry table: its cause has probably ended.

        An error that is not recoverable still needs an order.

        Returns:
            True if the last attempt failed.
        """
        self._retries_ordered += 1
        self._retry_wait.cancel()
        return self._failures > 0

    async def remove_disks(self, names: list[str]) -> int:
        """End the replication of some disks (:mod:`siterig.replication.engine.disk_removal`)."""
        await self.stop_verification()
        return await remove_disks(
            self._context,
            self.vm,
            names,
            make_last_cut=lambda then: self.replicate_now("CrashConsistent", "disks-removed", then=then),
        )

    async def add_disks(self, names: list[str]) -> int:
        """Let disks join; return a position after which all cuts have them (:meth:`DiskJoiner.add`)."""
        return await self._joiner.add(names)

    async def withdraw_disks(self, names: list[str]) -> None:
        """End the join of disks, also if they have just joined."""
        await self.stop_verification()
        await self._joiner.withdraw(names)

    async def verify(self) -> Verification:
        """Compare both sides at the position of a snapshot, while replication runs."""
        self._check_in_delta()
        try:
            self._snapshotting.acquire_nowait()
        except trio.WouldBlock:
            message = f"VM {self.vm!r} is being verified or copied"
            raise RigError(Code.VmBusy, message, recoverable=True) from None
        try:
            with trio.CancelScope() as self._verifying:
                self._verified = ProgressTracker(self.vm, self._context.clock)
                return await verify_disks(
                    self._context, self.vm, self._verified, lambda: self.replicate_now("CrashConsistent", "verify")
                )
        except OSError as exc:
            raise as_rig_error(exc) from exc
        finally:
            self._verified = None
            self._snapshotting.release()
        raise RigError(Code.Interrupted, f"the verification of VM {self.vm!r} was stopped")

    async def stop_verification(self) -> None:
        """Stop a running verification, and return when its snapshot is removed."""
        if self._verified is not None:
            self._verifying.cancel()
            async with self._snapshotting:
                pass

    async def send_again(self, parts: Iterable[PartName]) -> None:
        """Replace parts that the recovery side cannot use, and send missing ones, concurrently with other work.

        A VM that has failed over sends nothing new; parts that it had sent before are replaced all the same.
        """
        try:
            await self._outbox.replace(list(parts))
            if self._record.phase in ("initial", "resync", "delta") and not (self._ask_first or self._record.paused):
                await self._outbox.send()
        except OSError as exc:
            raise as_rig_error(exc) from exc
        except ResyncNeeded as exc:
            self._require_resync(exc.reason)  # an initial replication or a resync finds it in its next pass

    def _check_in_delta(self) -> None:
        phase = self._record.phase
        if phase != "delta":
            raise RigError(Code.InvalidState, f"VM {self.vm!r} is in phase {phase!r}; a cycle needs phase 'delta'")
        if self._record.paused:
            raise RigError(Code.InvalidState, f"VM {self.vm!r} is paused; a cycle runs after siterig resume {self.vm}")

    @property
    def uploaded_bytes(self) -> int:
        """The bytes that were sent since the agent's start."""
        return self._tracker.uploaded_bytes

    def progress(self) -> VmProgress:
        """Return the progress of the work, and the times of the cycles."""
        tracker = self._joiner.tracker if self._joiner.tracker.is_working else self._tracker
        found = (self._verified or tracker).snapshot()
        now_s, last_s, next_s = self._context.clock.trio_time_s(), self._cycle_at_s, self._next_cycle_at_s
        cycling = self._record.phase == "delta" and not self._record.paused
        return found.model_copy(
            update={
                "last_cycle_s": None if last_s is None else now_s - last_s,
                "next_cycle_s": None if next_s is None or not cycling else max(0.0, next_s - now_s),
            }
        )

    async def _order(self, phase: ReplicationPhase, *, limited: bool = False, reason: str | None = None) -> None:
        self._copy_result.resolve(RigError(Code.Interrupted, f"VM {self.vm!r}: phase {phase!r} was ordered meanwhile"))
        self._copy_result = CopyResult()
        continues = phase == "resync" == self._record.phase and self._record.resync_begun
        self._context.book.update(
            self.vm,
            phase=phase,
            resync_reason=reason,
            resync_reported=False,
            resync_begun=continues,
            resync_limited=limited,
            paused=False,
        )
        self._ask_first = False
        self._critical = False
        self._failures = 0
        self._context.waits.clear("retry", vm=self.vm)
        self._activity.cancel()
        self._manual.cancel()
        self._verifying.cancel()
        self._joiner.reconsider()
        _log.info("phase_ordered", vm=self.vm, phase=phase)
        if phase not in ("initial", "resync"):
            async with self._working:
                pass

    def _finish(self, phase: ReplicationPhase, following: ReplicationPhase) -> None:
        if self._record.phase == phase:
            self._context.book.update(self.vm, phase=following, resync_begun=False)
            self._copy_result.resolve()

    async def _act(self, phase: ReplicationPhase) -> None:
        if self._ask_first and phase in ("initial", "resync", "delta", "resync-required"):
            await self._resume()
        elif phase == "initial":
            await self._initial()
        elif phase == "resync":
            await self._resync()
        elif phase == "delta":
            await (self._paused() if self._record.paused else self._delta())
        elif phase == "resync-required":
            await self._report_resync()
            await trio.sleep_forever()
        else:
            await trio.sleep_forever()

    async def _resume(self) -> None:
        """Wait, after a restart, for the roles that start at the same time, and ask the vault for permission."""
        with self._context.waits.waiting("resume", vm=self.vm) as because:
            while True:
                try:
                    allowed = await self._context.vault.may_replicate(vm=self.vm)
                    if allowed:
                        await self._context.host.position()
                        if self._record.phase == "delta" and not self._snapshotting.locked():
                            async with self._snapshotting:  # a killed verification can have left it
                                await self._context.replicated(self.vm).end_snapshot()
                        await self._follow_vault()
                    break
                except RigError as exc:
                    # Any error: without the permission of the vault nothing is replicated.
                    because(exc)
                    _log.warning("resume_delayed", vm=self.vm, code=exc.code, message=exc.message)
                await self._context.clock.real.sleep(_ASK_AGAIN_S)
        self._ask_first = False
        self._joiner.reconsider()
        if not allowed:
            self._finish(self._record.phase, "suspended")
            _log.info("not_resumed", vm=self.vm)

    async def _follow_vault(self) -> None:
        """Take the user's settings from the vault; a change of them may not have arrived."""
        before = self._settings
        settings = await self._context.vault.settings(vm=self.vm)
        if settings is not None and self._settings == before:  # otherwise an order has come since the question
            self._context.book.update(self.vm, **settings.model_dump())

    @property
    def _settings(self) -> tuple[bool, float, float | None]:
        record = self._record
        return record.paused, record.interval_s, record.app_consistent_every_s

    async def _paused(self) -> None:
        """Send nothing until the VM is resumed; a log that was abandoned meanwhile is reported."""
        while self._record.paused:
            try:
                await check_vouched_for(self._context.replicated(self.vm))
                await self._follow_vault()
            except ResyncNeeded as exc:
                self._require_resync(exc.reason)
                return
            except (RigError, OSError) as exc:
                # The role that does not answer is reported by others; nothing else is due here.
                _log.info("paused_check_failed", vm=self.vm, reason=str(exc))
            if self._record.paused:
                await self._reports.wait(PAUSED_CHECK_S)

    async def _initial(self) -> None:
        try:
            await self._until_success(self._copy_initially)
        except ResyncNeeded as exc:
            # The caller of the initial replication waits until the disks are replicated: then by a comparison.
            _log.warning("initial_replication_became_resync", vm=self.vm, reason=exc.reason)
            if self._record.phase == "initial":
                self._context.book.update(self.vm, phase="resync")
            return
        self._tracker.end()
        self._finish("initial", "delta")

    async def _copy_initially(self) -> None:
        async with self._snapshotting:
            await replicate_initially(self._context, self._context.replicated(self.vm), self._outbox, self._tracker)

    async def _resync(self) -> None:
        async def once() -> None:
            try:
                async with self._snapshotting:
                    await resynchronize(self._context, self._context.replicated(self.vm), self._outbox, self._tracker)
            except ResyncNeeded as exc:
                # Not at once: the cause of the broken log may still be present.
                self._context.book.update(self.vm, resync_begun=False)
                message = f"VM {self.vm!r}: its log broke during the resynchronization ({exc.reason})"
                raise RigError(Code.of(exc.reason), message, recoverable=True) from exc
            except RigError as exc:
                if exc.code != Code.ManagedDiskReplaced:
                    raise
                self._context.book.update(self.vm, resync_begun=False)
                raise RigError(exc.code, exc.message, recoverable=True) from exc

        await self._until_success(once)
        self._tracker.end()
        self._finish("resync", "delta")

    async def _delta(self) -> None:
        app_due = self._first_app_point()
        next_at = self._context.clock.trio_time_s()
        while True:
            self._next_cycle_at_s = next_at
            await self._reports.wait(max(0.0, next_at - self._context.clock.trio_time_s()))
            begun = self._cycle_at_s = self._context.clock.trio_time_s()
            record = self._record
            kind: TagKind = "ApplicationConsistent" if begun >= app_due else "CrashConsistent"
            try:
                await self._until_success(lambda kind=kind: self._cycle.run_scheduled(kind, joins=self._times.joins))  # type: ignore[misc]
            except ResyncNeeded as exc:
                self._require_resync(exc.reason)
                return
            if kind == "ApplicationConsistent" and record.app_consistent_every_s is not None:
                app_due = begun + record.app_consistent_every_s
            is_idle = self._outbox.is_idle and len(self._context.book.all()) > 1
            next_at = self._times.following(begun, record.interval_s, is_idle=is_idle)

    def _first_app_point(self) -> float:
        """Return the time of the first application-consistent point; a restart continues the interrupted period."""
        record = self._record
        every = record.app_consistent_every_s
        if every is None:
            return float("inf")
        now = self._context.clock.read()
        if record.app_point is None:
            self._context.book.update(self.vm, app_point=now)
            return self._context.clock.trio_time_s() + every
        left = every - record.app_point.elapsed_ns(now) / SECOND_NS
        return self._context.clock.trio_time_s() + min(every, max(0.0, left))

    def _require_resync(self, reason: str) -> None:
        if self._record.phase == "delta":
            _log.error("resync_required", vm=self.vm, reason=reason)
            self._context.book.update(self.vm, phase="resync-required", resync_reason=reason, resync_reported=False)
            self._activity.cancel()

    async def _report_resync(self) -> None:
        record = self._record
        with self._context.waits.waiting("report resync", vm=self.vm) as because:
            while not record.resync_reported:
                try:
                    await self._context.vault.resync_required(vm=self.vm, reason=record.resync_reason or "")
                except RigError as exc:
                    because(exc)
                    _log.warning("report_not_sent", vm=self.vm, report="resync", code=exc.code, message=exc.message)
                    await self._context.clock.real.sleep(_ASK_AGAIN_S)
                    continue
                record = self._context.book.update(self.vm, resync_reported=True)

    async def _until_success(self, work: Callable[[], Awaitable[T]]) -> T:
        """Repeat by the retry table.  An error that is not recoverable makes the VM Critical until the next order.

        In a cycle a revoked key does so only until it can be had; not each attempt is reported, so that no event repeats.
        """
        reported: Code | None = None
        while True:
            ordered = self._retries_ordered
            try:
                async with self._working:
                    result = await work()
            except (RigError, OSError) as exc:
                error = as_rig_error(exc)
            else:
                await self._succeeded()
                return result
            self._failures += 1
            self._context.waits.set("retry", error.code, error.message, vm=self.vm)
            delay_s = self._context.retry.delay_s(self._failures, error) if error.recoverable else None
            if delay_s is None:
                self._critical = True
                self._copy_result.resolve(error)
            returns = error.code == Code.KeyRevoked and self._record.phase == "delta"
            if error.code != reported or not returns:
                await self._reports.error(error, attempt=self._failures, next_try_s=delay_s)
            reported = error.code
            while delay_s is None and not returns:
                await self._reports.wait(3600)
            with trio.CancelScope() as self._retry_wait:
                if ordered == self._retries_ordered:
                    await self._reports.wait(min(KEY_AGAIN_S, self._record.interval_s) if delay_s is None else delay_s)

    async def _succeeded(self) -> None:
        self._critical = False
        self._context.waits.clear("retry", vm=self.vm)
        if self._failures:
            self._failures = 0
            await self._reports.recovered()
