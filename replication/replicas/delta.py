"""One delta cycle: cut, send all closed segments, report to the vault.  No step of it delays a write.

While closed segments are in transit, guests write to the next ones: a cut only closes the current segments.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import structlog

from siterig.blockfs.contracts.control import CutInfo, TagKind
from siterig.blockfs.core.errors import Code, RigError
from siterig.replication.engine.context import AgentContext
from siterig.replication.engine.disk_copy import check_vouched_for, log_watched
from siterig.replication.engine.outbox import Outbox
from siterig.replication.engine.progress_tracker import ProgressTracker
from siterig.replication.engine.vault_reporter import VaultReporter

FREEZE_S_MAX = 10.0
REQUESTS_REMEMBERED_MAX = 100
_NOT_CONSISTENT = frozenset(
    {Code.FreezeFailed, Code.FreezeTimedOut, Code.AppScriptFailed, Code.AppScriptTimedOut, Code.AppScriptUnusable}
)
"""Errors for which a scheduled point is crash-consistent instead."""

_log = structlog.get_logger(__name__)


class DeltaCycle:
    """The cycles of one VM.  The caller runs one at a time.

    A cut whose data could not be sent is remembered, and reported by the next cycle that succeeds.  It is remembered in
    memory only: after a kill the vault learns of the point from the applier.
    """

    def __init__(
        self, context: AgentContext, vm: str, outbox: Outbox, reports: VaultReporter, tracker: ProgressTracker
    ) -> None:
        self._context = context
        self._vm = vm
        self._outbox = outbox
        self._reports = reports
        self._tracker = tracker
        self._unsent: list[tuple[CutInfo, float]] = []  # with the time of the cut on trio's clock
        self._requested: dict[str, CutInfo] = {}

    async def run(
        self,
        kind: TagKind,
        name: str,
        *,
        downgraded_because: str | None = None,
        request_id: str | None = None,
        joins: bool = False,
    ) -> CutInfo:
        """Make a cut and send it; return when data and tag are in the cache account.

        Args:
            kind: the kind of the recovery point.
            name: its name.
            downgraded_because: why it is not application-consistent although that was ordered first.
            joins: True if other VMs of the host may have a cycle now: small parts travel together.
            request_id: if a cut was made for this request before, that one is sent and no new one is made.

        Raises:
            ResyncNeeded: the log is not contiguous.
        """
        self._tracker.begin("DeltaReplication", [])
        try:
            with self._context.joint_puts.expecting(self._vm) if joins else nullcontext():
                cut = await self._run(kind, name, downgraded_because, request_id)
        finally:
            self._tracker.end()
        return cut

    async def _run(self, kind: TagKind, name: str, downgraded_because: str | None, request_id: str | None) -> CutInfo:
        await check_vouched_for(self._context.replicated(self._vm))
        if self._unsent:
            # After a failure: send the earlier cuts first, before a new one is made.
            await self._send()
        if request_id is not None and request_id in self._requested:
            return self._requested[request_id]  # it was one of the unsent cuts
        cut_at = self._context.clock.trio_time_s()
        async with log_watched(self._context.replicated(self._vm)):
            cut = await self._cut(kind, name)
        if downgraded_because is not None:
            cut = cut.model_copy(update={"downgraded_because": downgraded_because})
        _log.info("cut_made", vm=self._vm, trace=cut.tag_id, position=cut.position)
        self._unsent.append((cut, cut_at))
        if request_id is not None:
            self._requested[request_id] = cut
            while len(self._requested) > REQUESTS_REMEMBERED_MAX:
                del self._requested[next(iter(self._requested))]
        await self._send()
        if cut.kind == "ApplicationConsistent":
            self._context.book.update(self._vm, app_point=self._context.clock.read())
        return cut

    async def _send(self) -> None:
        await self._outbox.send()
        while self._unsent:
            cut, cut_at = self._unsent[0]
            await self._reports.point_sent(cut, cut_at, self._outbox.waiting_bytes)
            self._unsent.remove((cut, cut_at))
            _log.info("point_sent", vm=self._vm, trace=cut.tag_id, kind=cut.kind, name=cut.name, position=cut.position)

    async def _cut(self, kind: TagKind, name: str) -> CutInfo:
        if kind == "CrashConsistent":
            return await self._context.replicated(self._vm).cut(kind=kind, name=name)
        script = self._context.book.app_script(self._vm)
        if script is None:
            return await self._cut_frozen(kind, name, None)
        try:
            async with self._context.scripts.prepared(self._vm, name, script) as until_ns:
                return await self._cut_frozen(kind, name, until_ns)
        finally:
            if (error := self._context.scripts.failed_after(self._vm)) is not None:
                await self._reports.script_failed(error)

    async def _cut_frozen(self, kind: TagKind, name: str, until_ns: int | None) -> CutInfo:
        """Make a cut while the file systems are frozen; ``until_ns``: the time up to which the script holds applications."""
        disks = [Path(info.path) for info in await self._context.replicated(self._vm).infos()]
        mountpoints = await self._context.guests.mountpoints(disks)
        if until_ns is not None and not mountpoints:
            return await self._context.replicated(self._vm).cut(kind=kind, name=name, not_after_ns=until_ns)
        if not mountpoints:
            # No file system can be frozen: the disks are as a crash would leave them, so the point is crash-consistent.
            _log.warning("no_file_system_to_freeze", vm=self._vm, name=name)
            cut = await self._context.replicated(self._vm).cut(kind="CrashConsistent", name=name)
            return cut.model_copy(update={"downgraded_because": "no mounted file system"})
        # Read before the freezer starts its own clock: a cut until then was made while the file systems were frozen,
        # whatever happens after the cut.  A tag cannot be withdrawn, so it must not claim more than that.
        thaws_ns = self._context.clock.real.monotonic_ns() + int(FREEZE_S_MAX * 1e9)
        if until_ns is not None:
            thaws_ns = min(thaws_ns, until_ns)
        async with self._context.guests.frozen(mountpoints, timeout_s=FREEZE_S_MAX):
            return await self._context.replicated(self._vm).cut(kind=kind, name=name, not_after_ns=thaws_ns)

    async def run_ordered(self, kind: TagKind, name: str, *, request_id: str | None) -> CutInfo:
        """Run the cycle that a user ordered; if freeze or script fails, there is no point, and the vault gets the reason."""
        try:
            return await self.run(kind, name, request_id=request_id)
        except RigError as exc:
            if exc.code in _NOT_CONSISTENT:
                await self._reports.app_point_failed(exc)
            raise

    async def run_scheduled(self, kind: TagKind, *, joins: bool) -> CutInfo:
        """Run a scheduled cycle; if freeze or script fails, make a crash-consistent point, because the RPO counts."""
        try:
            return await self.run(kind, "scheduled", joins=joins)
        except RigError as exc:
            if exc.code not in _NOT_CONSISTENT:
                raise
            _log.warning("app_point_failed", vm=self._vm, code=exc.code, message=exc.message)
            because = f"{exc.message} ({exc.code})"
            return await self.run("CrashConsistent", "scheduled", downgraded_because=because, joins=joins)
