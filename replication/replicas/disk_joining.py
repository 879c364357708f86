"""The copy of disks that join the replication of a VM, while the cycles of its other disks continue.

Fault contract
--------------
The names of the disks and the progress of the copy are durable (``Relationship.joining``), so a copy that a kill interrupted
continues.  When every part of the copy is in the cache account, the disks become replicated ones, in one record and while no
cycle runs: every later cut has them, and no earlier one.  The answer to the vault is a position that was read after that
record, so every cut after it has the disks; the vault decides by this alone from which position on a state has them.  A call
that is repeated after a kill finds the disks where they are.  docs/internals/decisions/0052-disks-that-join.md has the kill
of each role.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog
import trio

from siterig.blockfs.core.errors import Code, RigError
from siterig.replication.engine.context import AgentContext
from siterig.replication.engine.initial import replicate_initially
from siterig.replication.engine.outbox import Outbox
from siterig.replication.engine.progress_tracker import ProgressTracker
from siterig.replication.engine.relationship import DiskJoin, Relationship
from siterig.replication.engine.resync import resynchronize
from siterig.replication.engine.retry import ResyncNeeded, as_rig_error
from siterig.replication.parts.spool import clear_spool
from siterig.replication.replicas.copy_result import CopyResult

PLACE = "join"
"""The place of a failed copy in the list of the agent's waits."""
_PHASES = ("delta", "resync-required", "resync")

_log = structlog.get_logger(__name__)


class DiskJoiner:
    """The disks that join the replication of one VM.

    Attributes:
        tracker: the progress of their copy.
    """

    def __init__(
        self,
        context: AgentContext,
        vm: str,
        *,
        working: trio.Lock,
        may_work: Callable[[], bool],
        drop_keys: Callable[[str], None],
        tracker: ProgressTracker,
    ) -> None:
        """Make the joiner.

        Args:
            context: the surroundings of the agent.
            vm: the VM.
            working: held while a cycle or a copy of the replicated disks runs.
            may_work: returns False while nothing may be sent.
            drop_keys: drops the data keys of a disk that the cache account uses.
            tracker: the progress of the replicated disks.
        """
        self.tracker = ProgressTracker(vm, context.clock, part_of=tracker)
        self._context = context
        self._vm = vm
        self._working = working
        self._may_work = may_work
        self._drop_keys = drop_keys
        self._outbox = Outbox(context, context.joining(vm), self.tracker)
        self._copying = trio.Lock()
        self._activity = trio.CancelScope()
        self._reconsidered = trio.Event()
        self._result = CopyResult()

    @property
    def _record(self) -> Relationship:
        return self._context.book.get(self._vm)

    async def run(self) -> None:
        """Copy the disks that are to join, until cancelled."""
        try:
            while True:
                reconsidered = self._reconsidered
                with trio.CancelScope() as self._activity:
                    if self._record.joining is not None and self._record.phase in _PHASES and self._may_work():
                        await self._join()
                    await reconsidered.wait()
        finally:
            self._result.resolve(RigError(Code.Interrupted, f"the replication of VM {self._vm!r} was removed"))
            self._context.waits.clear(PLACE, vm=self._vm)

    def reconsider(self) -> None:
        """Look again at the record and at the state of the VM; a copy that runs begins again where it was."""
        self._reconsidered.set()
        self._reconsidered = trio.Event()
        self._activity.cancel()

    async def stop_work(self) -> None:
        """Interrupt the copy; return when none is running, and its snapshot is removed."""
        self.reconsider()
        async with self._copying:
            if self._record.joining is not None:
                await self._context.joining(self._vm).end_snapshot()

    async def add(self, names: list[str]) -> int:
        """Make these disks join; return a position after which all cuts have them (``Provider.add_disks``)."""
        await self._let_join(names)
        return await self._context.host.position()

    async def _let_join(self, names: list[str]) -> None:
        if self._record.replicated is None:
            everything = [disk.name for disk in await self._context.host.list_disks(vm=self._vm)]
            replicated = [name for name in everything if name in {disk.name for disk in self._record.disks}]
            self._context.book.update(self._vm, replicated=replicated)
        outside = [name for name in names if name not in (self._record.replicated or [])]
        if not outside:
            return
        if self._record.phase not in _PHASES:
            raise RigError(
                Code.InvalidState,
                f"VM {self._vm!r} is in phase {self._record.phase!r}; a disk can join in: {', '.join(_PHASES)}",
            )
        infos = await self._context.host.list_disks(vm=self._vm, disks=outside)
        await self._context.host.check_tracking(vm=self._vm, disks=outside)
        joining = self._record.joining
        if joining is None or not set(outside) <= set(joining.names):
            for info in infos:
                self._drop_keys(info.disk_id)  # the vault deletes them with a managed disk
            known = [] if joining is None else joining.names
            removed = {name: at for name, at in self._record.removed.items() if name not in outside}
            join = DiskJoin(names=sorted({*known, *outside}))
            self._context.book.update(self._vm, joining=join, removed=removed)
            _log.info("disks_begin_to_join", vm=self._vm, disks=join.names)
            self._begin_again()
        elif self._result.is_resolved:
            self._begin_again()
        await self._result.wait()

    def _begin_again(self) -> None:
        self._result.resolve(RigError(Code.Interrupted, f"VM {self._vm!r}: other disks were ordered to join meanwhile"))
        self._result = CopyResult()
        self.reconsider()

    async def withdraw(self, names: list[str]) -> None:
        """End the join of these disks, also if they have just joined (``Provider.withdraw_disks``)."""
        joining = self._record.joining
        if joining is not None and set(names) & set(joining.names):
            left = [name for name in joining.names if name not in names]
            join = DiskJoin(names=left) if left else None
            await self._leave(names, [disk.disk_id for disk in joining.disks if disk.name in names], joining=join)
        async with self._working:
            record = self._record
            inside = [name for name in names if name in (record.replicated or [])]
            if inside:
                position = await self._context.host.position()
                ids = [disk.disk_id for disk in record.disks if disk.name in inside]
                await self._leave(
                    inside,
                    ids,
                    replicated=[name for name in record.replicated or [] if name not in inside],
                    disks=[disk for disk in record.disks if disk.name not in inside],
                    removed=record.removed | dict.fromkeys(inside, position),
                )

    async def _leave(self, names: list[str], disk_ids: list[str], **changes: object) -> None:
        """Record the changes, and delete the logs and parts of the disks."""
        self._context.book.update(self._vm, **changes)
        _log.info("disks_withdrawn", vm=self._vm, disks=names)
        self._result.resolve(RigError(Code.Interrupted, f"disks of VM {self._vm!r} were withdrawn: {', '.join(names)}"))
        self.reconsider()
        async with self._copying:
            pass
        await self._context.host.stop_tracking(vm=self._vm, disks=names)
        for disk_id in disk_ids:
            await trio.to_thread.run_sync(clear_spool, self._context.spool / disk_id)
        self.reconsider()

    async def _join(self) -> None:
        """Copy the disks and let them in, by the retry table; another error ends it until the next order."""
        failures = 0
        while True:
            try:
                async with self._copying:
                    await self._copy()
                async with self._working:
                    self._let_in()
            except ResyncNeeded as exc:
                # The first time the reason can be a managed disk with data; then the disk is copied by comparison.
                again = self._record.joining is not None and self._record.joining.by_comparison
                self._change(by_comparison=True, resync_begun=False, disks=[])
                _log.info("join_by_comparison", vm=self._vm, reason=exc.reason)
                if not again:
                    continue
                # Not at once: the cause of the broken log may still be present.
                message = f"VM {self._vm!r}: the log of a disk that joins broke ({exc.reason})"
                error = RigError(Code.of(exc.reason), message, recoverable=True)
            except (RigError, OSError) as exc:
                error = as_rig_error(exc)
                if error.code == Code.ManagedDiskReplaced:
                    self._change(resync_begun=False)
                    error = RigError(error.code, error.message, recoverable=True)
            else:
                return
            failures += 1
            self._context.waits.set(PLACE, error.code, error.message, vm=self._vm)
            _log.warning("join_failed", vm=self._vm, code=error.code, message=error.message, attempt=failures)
            delay_s = self._context.retry.delay_s(failures, error) if error.recoverable else None
            if delay_s is None:
                self._result.resolve(error)
                return
            await self._context.clock.sleep(delay_s)

    def _change(self, **changes: object) -> None:
        joining = self._record.joining
        if joining is not None:
            self._context.book.update(self._vm, joining=joining.model_copy(update=changes))

    async def _copy(self) -> None:
        joining = self._record.joining
        copy = resynchronize if joining is not None and joining.by_comparison else replicate_initially
        await copy(self._context, self._context.joining(self._vm), self._outbox, self.tracker)
        self._context.waits.clear(PLACE, vm=self._vm)
        self.tracker.end()

    def _let_in(self) -> None:
        """Make the disks replicated ones; no cycle and no copy of the others runs."""
        record = self._record
        if record.joining is None:
            return
        names = record.joining.names
        others = [disk for disk in record.disks if disk.name not in names]
        self._context.book.update(
            self._vm,
            replicated=sorted({*(record.replicated or []), *names}),
            disks=[*others, *record.joining.disks],
            joining=None,
        )
        _log.info("disks_joined", vm=self._vm, disks=names)
        self._result.resolve()
