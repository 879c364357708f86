"""Leases of mounted points and copies to a process of this host; they are reclaimed when the process has ended.

Fault contract: the holder is recorded in the row (schema.MountRow, schema.AzureVmRow), and the vault reads the rows when it
starts.  So a lease is reclaimed also if the vault was down when the process ended.  If something still has it open, for
example a program that the process started, the vault tries again until it is closed.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

import structlog
import trio
from sqlalchemy import select
from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.db.schema import AzureVmRow, MountRow
from siterig.azure_emu.vault.inventory import azure_vms
from siterig.azure_emu.vault.mounts import mounts
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.core.host_process import HostProcess

RETRY_S = 5.0

_log = structlog.get_logger(__name__)


class Leases:
    """The leases of one vault; all methods run on the trio thread."""

    def __init__(self, context: VaultContext) -> None:
        self._context = context
        self._watched: set[HostProcess] = set()
        self._locks = WeakValueDictionary[HostProcess, trio.Lock]()
        self._send, self._receive = trio.open_memory_channel[HostProcess](math.inf)

    @asynccontextmanager
    async def lease(self, process: HostProcess) -> AsyncIterator[None]:
        """Hold off a reclaim while something is opened for the process, and watch the process from then on."""
        async with self._lock(process):
            try:
                yield
            finally:
                self._watch(process)

    def _lock(self, process: HostProcess) -> trio.Lock:
        return self._locks.setdefault(process, trio.Lock())

    def _watch(self, process: HostProcess) -> None:
        if process not in self._watched:
            self._watched.add(process)
            self._send.send_nowait(process)

    async def run(self) -> None:
        """Reclaim the leases of processes that have ended, until cancelled."""
        for process in await self._context.database.transact(_lease_holders):
            self._watch(process)
        async with trio.open_nursery() as nursery:
            async for process in self._receive:
                nursery.start_soon(self._reclaim, process)

    async def _reclaim(self, process: HostProcess) -> None:
        await process.ended()
        self._watched.discard(process)  # a lease that begins from now on starts a new watch
        logged = False
        while True:
            try:
                await self._close_all(process)
                break
            except RigError as error:  # it is in use, or the recovery host is away
                if not logged:
                    _log.info("reclaim_delayed", process=process.pid, code=error.code, reason=error.message)
                logged = True
            await self._context.clock.real.sleep(RETRY_S)

    async def _close_all(self, process: HostProcess) -> None:
        async with self._lock(process):
            transact = self._context.database.transact
            for vm, name in await transact(lambda session: _mounted(session, process)):
                await mounts.close(self._context, vm, name)
                _log.info("mounted_point_reclaimed", vm=vm, name=name, process=process.pid)
            for vm, name in await transact(lambda session: _copies(session, process)):
                await azure_vms.remove_copy(self._context, vm, name)
                _log.info("copy_reclaimed", vm=vm, name=name, process=process.pid)


def _lease_holders(session: Session) -> set[HostProcess]:
    rows = [
        *session.execute(select(MountRow.process_id, MountRow.process_started)),
        *session.execute(select(AzureVmRow.process_id, AzureVmRow.process_started)),
    ]
    return {HostProcess(pid=pid, started=started) for pid, started in rows if pid is not None and started is not None}


def _copies(session: Session, process: HostProcess) -> list[tuple[str, str]]:
    query = select(AzureVmRow.owner, AzureVmRow.name).where(
        AzureVmRow.process_id == process.pid, AzureVmRow.process_started == process.started
    )
    return [(vm, name) for vm, name in session.execute(query)]


def _mounted(session: Session, process: HostProcess) -> list[tuple[str, str]]:
    query = select(MountRow.vm, MountRow.name).where(
        MountRow.process_id == process.pid, MountRow.process_started == process.started
    )
    return [(vm, name) for vm, name in session.execute(query)]
