"""Waiting for a change of a VM's rows without polling the database."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio
from sqlalchemy.orm import Session

from siterig.azure_emu.vault.db.database import VaultDatabase

T = TypeVar("T")


class Notifications:
    """One broadcast per VM.

    Whoever commits a change calls :meth:`notify` after the commit.  A waiter takes the event *before* it looks, so a
    change between its look and its wait is not missed; all run on the trio thread, nothing else needs a lock.
    """

    def __init__(self, database: VaultDatabase) -> None:
        self._database = database
        self._events: dict[str, trio.Event] = {}

    def notify(self, vm: str) -> None:
        """Wake everyone who waits for this VM."""
        event = self._events.pop(vm, None)
        if event is not None:
            event.set()

    def notify_all(self) -> None:
        """Wake every waiter: the state of a role changed, which concerns all VMs."""
        for vm in list(self._events):
            self.notify(vm)

    async def wait_until(self, vm: str, check: Callable[[Session], T | None]) -> T:
        """The first result of ``check`` that is not None; it is asked at once and after each change."""
        while True:
            event = self._events.setdefault(vm, trio.Event())
            found = await self._database.transact(check)
            if found is not None:
                return found
            await event.wait()
