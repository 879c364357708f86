"""Requests to the site to send parts again that the recovery side cannot use.

They are kept in memory, because the applier repeats its request.  A request that fails is repeated until the site has
answered one: otherwise the wait of a request that came once would stay after the network has healed.
"""

from __future__ import annotations

import structlog
import trio

from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.db.schema import DiskRow
from siterig.blockfs.core.errors import Code, RigError

ANSWER_S = 60.0
"""The limit for the answer of the site; a later request is repeated, and the site finishes the first one."""
ASK_AGAIN_S = 10.0
"""The delay before a request that failed is repeated."""
SENT_S = 6.0
"""A part that is requested this long after it was resent has been read since, because the applier polls every 3 s."""
UNREADABLE_S = 90.0
"""A part that the account does not give counts as unusable this long after it was resent: the account may fail meanwhile."""
PARTS_MAX = 1000
"""The largest number of parts of a VM that wait to be requested."""

_log = structlog.get_logger(__name__)


class Repairs:
    """The requests of one vault."""

    def __init__(self, context: VaultContext) -> None:
        self._context = context
        self._wanted: dict[str, dict[str, bool]] = {}
        """The parts of each VM that are to be requested; True for one that was found bad, False for those after it."""
        self._asking: set[str] = set()
        self._refused: set[str] = set()
        """The VMs whose last request failed."""
        self._again: set[str] = set()
        """The VMs whose request will be repeated."""
        self._sent: dict[str, dict[str, float]] = {}
        """The bad parts that the site has sent again, with the time (:meth:`Clock.trio_time_s`)."""
        self._news = trio.Event()

    async def ask_for(self, disk_id: str, parts: list[str], *, is_temporary: bool) -> str | None:
        """Request parts of a managed disk, because the first one is bad; does not wait for the site.

        A disk that belongs to no item is ignored.

        Args:
            disk_id: the managed disk.
            parts: the bad part, and parts after it that nobody has tried yet.
            is_temporary: the account did not give the part; otherwise it was read, and it is bad, or it is gone.
        Returns:
            The first part if it was resent before and is still bad; otherwise None.
        """
        row = await self._context.database.known(("disk", disk_id), lambda session: session.get(DiskRow, disk_id))
        if row is None:
            return None
        sent_s = self._sent.get(row.vm, {}).get(parts[0]) if parts else None
        self._ask(row.vm, {part: index == 0 for index, part in enumerate(parts)})
        enough_s = UNREADABLE_S if is_temporary else SENT_S
        return parts[0] if sent_s is not None and self._context.clock.real.trio_time_s() - sent_s >= enough_s else None

    def look_for_missing(self, vm: str) -> None:
        """Let the site look for parts of a VM that the account lacks."""
        self._ask(vm, {})

    def _ask(self, vm: str, parts: dict[str, bool]) -> None:
        wanted = self._wanted.setdefault(vm, {})
        for part, is_bad in parts.items():
            if part in wanted or len(wanted) < PARTS_MAX:
                wanted[part] = wanted.get(part, False) or is_bad
        self._news.set()

    def keep_only(self, vms: set[str]) -> None:
        """Forget the requests and the waits of all other VMs."""
        for vm in self._refused - vms:
            self._context.waits.clear("repair", vm=vm)
            self._refused.discard(vm)
        self._wanted = {vm: parts for vm, parts in self._wanted.items() if vm in vms}
        self._sent = {vm: parts for vm, parts in self._sent.items() if vm in vms}

    async def run(self) -> None:
        """Send the requests until cancelled, for each VM one at a time; repeat those that fail."""
        async with trio.open_nursery() as nursery:
            while True:
                self._news = trio.Event()
                for vm in [vm for vm in self._wanted if vm not in self._asking]:
                    self._asking.add(vm)
                    nursery.start_soon(self._ask_site, vm, self._wanted.pop(vm), nursery)
                await self._news.wait()

    async def _ask_again(self, vm: str, parts: dict[str, bool]) -> None:
        self._again.add(vm)
        await self._context.clock.real.sleep(ASK_AGAIN_S)
        self._again.discard(vm)
        if vm in self._refused:
            self._ask(vm, parts)

    async def _ask_site(self, vm: str, parts: dict[str, bool], nursery: trio.Nursery) -> None:
        error: RigError | None = None
        try:
            with self._context.clock.real.move_on_after(ANSWER_S) as scope:
                await self._context.site.send_again(vm=vm, parts=list(parts))
            if scope.cancelled_caught:
                error = RigError(Code.RoleUnavailable, f"the site did not send parts again within {ANSWER_S:g} s")
        except RigError as exc:
            error = exc
        finally:
            self._asking.discard(vm)
            self._news.set()
        if error is None:
            self._context.waits.clear("repair", vm=vm)
            self._refused.discard(vm)
            sent = self._sent.setdefault(vm, {})
            for part in [part for part, is_bad in parts.items() if is_bad]:
                sent.setdefault(part, self._context.clock.real.trio_time_s())
            for part in list(sent)[: max(0, len(sent) - PARTS_MAX)]:
                del sent[part]
        else:
            self._refused.add(vm)
            _log.warning("parts_not_resent", vm=vm, code=error.code, reason=error.message)
            message = f"{len(parts)} parts are to be sent again, and the site did not: {error.message}"
            self._context.waits.set("repair", error.code, message, vm=vm)
            if vm not in self._again:
                nursery.start_soon(self._ask_again, vm, parts)
