"""Notifications of changes of a VM's rows, so that no task polls the database."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio
from sqlalchemy.orm import Session

from siterig.azure_emu.vault.db.database import VaultDatabase

T = TypeVar("T")


class Notifications:
    """One broadcast for each VM.

    A task that commits a change calls :meth:`notify` after the commit.  A waiter takes the event *before* it reads the rows,
    so it does not miss a change between reading and waiting.  All calls are on the trio thread, so no lock is needed.
    """

    def __init__(self, database: VaultDatabase, observe: Callable[[], None] = lambda: None) -> None:
        """Make the broadcasts; ``observe`` is called with each of them."""
        self._database = database
        self._observe = observe
        self._events: dict[str, trio.Event] = {}

    def notify(self, vm: str) -> None:
        """Wake all tasks that wait for this VM."""
        self._observe()
        event = self._events.pop(vm, None)
        if event is not None:
            event.set()

    def notify_all(self) -> None:
        """Wake all tasks, because the state of a role has changed."""
        self._observe()
        for vm in list(self._events):
            self.notify(vm)

    async def wait_until(self, vm: str, check: Callable[[Session], T | None]) -> T:
        """Return the first result of ``check`` that is not None; it is called at once and after each change."""
        return await self.wait_for(vm, lambda: self._database.transact(check))

    async def wait_for(self, vm: str, look: Callable[[], Awaitable[T | None]]) -> T:
        """Return the first result of ``look`` that is not None; it is called at once and after each change."""
        while True:
            event = self._events.setdefault(vm, trio.Event())
            found = await look()
            if found is not None:
                return found
            await event.wait()
