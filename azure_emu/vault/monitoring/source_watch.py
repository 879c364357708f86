"""Watches the site's disks of VMs that were failed over: an old primary can still be in use, or be written to.

Such data exists only at the site, and a failback replaces it.  The site does not report it, because after a failover nothing
is replicated, so the vault asks every ``WATCH_S`` seconds.  The answers are kept in memory; after a restart the vault asks
at once.
"""

from __future__ import annotations

from contextlib import suppress

from sqlalchemy import select
from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context import disk_sets, events
from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.db.database import find_item
from siterig.azure_emu.vault.db.schema import ItemRow
from siterig.azure_emu.vault.model.resources import HealthError
from siterig.azure_emu.vault.monitoring import acknowledged
from siterig.blockfs.contracts.control import SourceUse
from siterig.blockfs.core.errors import RigError

CODE = "SourceInUse"
WATCH_S = 15.0


def describe(uses: list[SourceUse]) -> str:
    """Return a text about the uses of the disks at the site after the recovery point of the failover."""
    parts = []
    for use in uses:
        written = "unknown changes" if use.written_bytes is None else f"{use.written_bytes} bytes written"
        parts.append(f"disk {use.name}: {written}" + (f", open handles: {use.open_handles}" if use.open_handles else ""))
    return f"at the site after the recovery point: {'; '.join(parts)}"


async def changed_disks(context: VaultContext, vm: str) -> list[SourceUse]:
    """Ask the site; return its disks that were written to after the failover, or may have been."""
    after, excluded = await context.database.transact(lambda session: _at_failover(find_item(session, vm)))
    uses = [use for use in await context.site.source_use(vm=vm, after=after or 0) if use.name not in excluded]
    if after is None:  # the failover did not record its position (an older siterig), or it has failed back
        return [use.model_copy(update={"written_bytes": None}) for use in uses]
    return [use for use in uses if use.written_bytes != 0]


class SourceWatch:
    """The watch of one vault."""

    def __init__(self, context: VaultContext) -> None:
        self._context = context
        self._used: dict[str, list[SourceUse]] = {}

    async def run(self) -> None:
        """Make a round every ``WATCH_S`` seconds, until cancelled."""
        while True:
            await self.round()
            await self._context.clock.real.sleep(WATCH_S)

    async def round(self) -> None:
        """Ask the site about every VM that is failed over."""
        failed_over = await self._context.database.known("failed over", _failed_over)
        self._used = {vm: used for vm, used in self._used.items() if vm in failed_over}
        unknown = set()
        for vm, (after, excluded) in failed_over.items():
            try:
                uses = await self._context.site.source_use(vm=vm, after=after or 0)
            except RigError:
                unknown.add(vm)
                continue  # the site is lost, or has no such VM: keep the last answer
            used = [use for use in uses if use.name not in excluded and (use.written_bytes != 0 or use.open_handles)]
            if used and vm not in self._used:
                await self._record(vm, used)
            if used:
                self._used[vm] = used
            else:
                self._used.pop(vm, None)
        lasting = {*self._used, *unknown}
        if await self._context.database.known("acknowledged uses", acknowledged.vms_of_source_use) - lasting:
            with suppress(RigError):  # the host's disk is full: the next round tries again
                await self._context.database.transact(lambda session: acknowledged.forget_source_use(session, lasting))

    def health_errors(self, vm: str) -> list[HealthError]:
        """Return the warning of an item whose disks at the site are in use or were written to; else an empty list."""
        used = self._used.get(vm)
        if used is None:
            return []
        text = f"VM {vm!r} was failed over, but {describe(used)}; a failback replaces this, and keeps the old disks as files"
        if any(use.open_handles for use in used):
            text += "; it is refused while a disk is open"
        return [
            HealthError(
                errorCode=CODE,
                errorId=acknowledged.SOURCE_USE,
                summaryMessage=text,
                recoverable=True,
                attempt=0,
                next_try_time=None,
            )
        ]

    async def _record(self, vm: str, used: list[SourceUse]) -> None:
        text = f"VM {vm!r} was failed over, but {describe(used)}"
        try:
            await self._context.database.transact(
                lambda session: events.record(
                    session,
                    vm=vm,
                    code=CODE,
                    kind="VmHealth",
                    severity="Warning",
                    text=text,
                    now_ns=self._context.clock.wall_ns(),
                )
            )
        except RigError:
            self._used.pop(vm, None)  # the host's disk is full: the next round tries again


def _failed_over(session: Session) -> dict[str, tuple[int | None, tuple[str, ...]]]:
    query = select(ItemRow).where(ItemRow.failover_position.is_not(None))
    return {item.vm: _at_failover(item) for item in session.scalars(query)}


def _at_failover(item: ItemRow) -> tuple[int | None, tuple[str, ...]]:
    """Return the position of the failover, and the disks that it left at the site: a failback does not replace them."""
    return item.failover_position, disk_sets.lacking(item, item.failover_position)
