"""Reports parts that are applied, and deletes their blobs, while the next ones are applied.

A report and a delete are calls to other processes; the applier would spend half of its time with waiting for them.  Several
parts that were applied meanwhile are one report.

Fault contract: a blob is deleted when a report that contains its part has arrived, as without this module.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import trio

from siterig.blockfs.core.errors import RigError
from siterig.blockfs.transfer.part_name import PartName

Report = Callable[[list[PartName], bool], Awaitable[None]]
"""Reports the state of the disk and deletes these parts; True if nothing else is to be applied now."""


class ReportsBehind:
    """The reports of one disk; its task runs in the nursery of :func:`reporting_behind`."""

    def __init__(self, report: Report, nursery: trio.Nursery) -> None:
        self._report = report
        self._nursery = nursery
        self._parts: list[PartName] = []
        self._is_last = False
        self._ended: trio.Event | None = None
        self._failure: RigError | None = None

    def note(self, part: PartName, *, is_last: bool) -> None:
        """Note that a part was applied.

        Raises:
            RigError: the failure of an earlier report or delete.
        """
        if self._failure is not None:
            raise self._failure
        self._parts.append(part)
        self._is_last = is_last
        if self._ended is None:
            self._ended = trio.Event()
            self._nursery.start_soon(self._run, self._ended)

    async def finish(self) -> None:
        """Wait until everything is reported.

        Raises:
            RigError: the failure of a report or delete.
        """
        if self._ended is not None:
            await self._ended.wait()
        if self._failure is not None:
            raise self._failure

    async def _run(self, ended: trio.Event) -> None:
        try:
            while self._parts:
                parts, self._parts = self._parts, []
                await self._report(parts, self._is_last)
        except RigError as error:
            self._failure = error
        finally:
            self._ended = None
            ended.set()


@asynccontextmanager
async def reporting_behind(report: Report, nursery: trio.Nursery) -> AsyncIterator[ReportsBehind]:
    """Report for the time of the block, and finish at its end; an error of the block comes before one of a report."""
    behind = ReportsBehind(report, nursery)
    try:
        yield behind
    except (RigError, OSError):
        with suppress(RigError):
            await behind.finish()
        raise
    await behind.finish()
