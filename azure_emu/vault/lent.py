"""Mounted states that are lent to a process of this host, and taken back when it has ended.

Fault contract: whose a state is stands in its row (schema.MountRow), and rows are looked at when the vault starts.  So it is
taken back also if the vault was not there when the process ended.  What something has open still (a program that the process
had started, say) is tried again until it has let go.
"""

from __future__ import annotations

import math

import structlog
import trio
from sqlalchemy import select
from sqlalchemy.orm import Session

from azure_emu.vault import mounts
from azure_emu.vault.schema import MountRow
from azure_emu.vault.services import Services
from blockfs.errors import RigError
from blockfs.host_process import HostProcess

RETRY_S = 5.0

_log = structlog.get_logger("azure_emu.vault.lent")


class Lent:
    """One vault's.  One trio thread."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._watched: set[HostProcess] = set()
        self._send, self._receive = trio.open_memory_channel[HostProcess](math.inf)

    def watch(self, process: HostProcess) -> None:
        """Take back what is lent to the process, or was noted to be, when it has ended."""
        if process not in self._watched:
            self._watched.add(process)
            self._send.send_nowait(process)

    async def run(self) -> None:
        """Until cancelled."""
        for process in await self._services.store.transact(_borrowers):
            self.watch(process)
        async with trio.open_nursery() as nursery:
            async for process in self._receive:
                nursery.start_soon(self._take_back, process)

    async def _take_back(self, process: HostProcess) -> None:
        await process.ended()
        told = False
        while True:
            try:
                for vm, name in await self._services.store.transact(lambda session: _lent_to(session, process)):
                    await mounts.close(self._services, vm, name)
                    _log.info("mounted_point_taken_back", vm=vm, name=name, process=process.pid)
                break
            except RigError as error:  # it is in use, or the recovery host is away
                if not told:
                    _log.info("mounted_point_not_taken_back_yet", process=process.pid, code=error.code, reason=error.message)
                told = True
            await trio.sleep(RETRY_S)
        self._watched.discard(process)


def _borrowers(session: Session) -> set[HostProcess]:
    rows = session.execute(select(MountRow.process_id, MountRow.process_started))
    return {HostProcess(pid=pid, started=started) for pid, started in rows if pid is not None and started is not None}


def _lent_to(session: Session, process: HostProcess) -> list[tuple[str, str]]:
    query = select(MountRow.vm, MountRow.name).where(
        MountRow.process_id == process.pid, MountRow.process_started == process.started
    )
    return [(vm, name) for vm, name in session.execute(query)]
