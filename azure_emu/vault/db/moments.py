"""The moments of the vault, read off the rows that a transaction writes: no task that writes a row has to note them.

Fault contract: moments are in memory only, the last ``MOMENTS_KEPT`` of them.  Those of a transaction count when it is
committed.
"""

from __future__ import annotations

import secrets
from collections import deque
from functools import cache
from typing import Any

import trio
from sqlalchemy import Connection, Select, bindparam, event, inspect, select
from sqlalchemy.orm import Session

from siterig.azure_emu.contracts.moments import MomentFeed, VaultMoment, VaultMoments
from siterig.azure_emu.vault.db.schema import EventRow, ItemRow, JobRow, TaskRow
from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock

MOMENTS_KEPT = 1000
_STARTED = "InProgress"
ALIASES = {"InitialReplicationInProgress": "InitialReplicationStarted"}
"""Further names of states of an item."""


class MomentLog(MomentFeed):
    """The last moments of a vault.  All calls are on the trio thread."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._epoch = secrets.token_hex(8)
        self._moments: deque[VaultMoment] = deque(maxlen=MOMENTS_KEPT)
        self._last = 0
        self._news = trio.Event()

    def note(self, moments: list[VaultMoment]) -> None:
        """Publish the moments of a committed transaction."""
        if moments:
            self._moments.extend(moments)
            self._last += len(moments)
            self._news.set()
            self._news = trio.Event()

    async def moments(self, *, after: int | None, epoch: str, patience_s: float) -> VaultMoments:
        if after is None:
            return VaultMoments(epoch=self._epoch, last=self._last, moments=[])
        if epoch != self._epoch:  # everything that happened here came later than the caller's last question
            after = 0
        with self._clock.move_on_after(patience_s):
            while self._last == after:
                await self._news.wait()
        count = min(self._last - after, len(self._moments))
        found = list(self._moments)[-count:] if count > 0 else []
        return VaultMoments(epoch=self._epoch, last=self._last, moments=found)


class MomentSession(Session):
    """A session that notes the moments of the rows that it writes, in their order."""

    def __init__(self, bind: Connection) -> None:
        super().__init__(bind, expire_on_commit=False)
        self.found: list[tuple[str, str | int]] = []

    def get(self, entity: Any, ident: Any, **options: Any) -> Any:
        """Return a row by its key, as every session does; a key of one column takes a statement that was made once."""
        if options or not isinstance(ident, str | int):
            return super().get(entity, ident, **options)
        known = self.identity_map.get((entity, (ident,), None))
        if known is not None:
            return super().get(entity, ident) if inspect(known).expired else known
        return self.scalars(_by_key(entity), {"key": ident}).one_or_none()

    def moments(self) -> list[VaultMoment]:
        """Return the moments; call it in the transaction, after its last flush."""
        return [
            VaultMoment(name=name, vm=subject if isinstance(subject, str) else self._vm(subject))
            for name, subject in self.found
        ]

    def _vm(self, job_id: int) -> str:
        job = self.get(JobRow, job_id)
        return "" if job is None else job.vm


@cache
def _by_key(entity: Any) -> Select[Any]:
    (column,) = inspect(entity).primary_key
    return select(entity).where(column == bindparam("key"))


@event.listens_for(MomentSession, "after_flush")  # for the class: to listen to each session costs more than a statement
def _flushed(session: MomentSession, _context: Any) -> None:
    found = session.found
    for row in (*session.new, *session.dirty):
        if isinstance(row, EventRow):
            found.append((row.code, row.affected_object))
        elif isinstance(row, JobRow) and row in session.new:
            found.append((f"{row.scenario}Started", row.vm))
        elif isinstance(row, ItemRow) and inspect(row).attrs.protection_state.history.has_changes():
            found.append((row.protection_state, row.vm))
            if row.protection_state in ALIASES:
                found.append((ALIASES[row.protection_state], row.vm))
        elif isinstance(row, TaskRow) and inspect(row).attrs.state.history.has_changes() and row.state != "NotStarted":
            state = "Started" if row.state == _STARTED else row.state
            found.append((f"{row.name}{state}", row.job_id))
