"""The context that all parts of the vault work with: the database, the clock and the ports to the other roles."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from sqlalchemy.orm import Session

from siterig.azure_emu.contracts.recovery_side import RecoverySide
from siterig.azure_emu.vault.context.applied_lag import AppliedLag
from siterig.azure_emu.vault.context.roles import Roles
from siterig.azure_emu.vault.db.database import VaultDatabase, find_item
from siterig.azure_emu.vault.db.notifications import Notifications
from siterig.azure_emu.vault.db.schema import ItemRow
from siterig.blockfs.contracts.control import DiskHostControl
from siterig.blockfs.core.clock import Clock
from siterig.blockfs.core.keyed_lock import KeyedLock
from siterig.blockfs.core.waits import Waits
from siterig.blockfs.sides.provider import Provider

T = TypeVar("T")
ShutDown = Callable[[list[Path]], Awaitable[None]]
"""A function that is called with the disk files of a VM."""


async def no_check(_disks: list[Path]) -> None:
    """Check nothing: the default of a vault whose VMs are not on this host."""


@dataclass(frozen=True)
class VaultContext:
    """The database, the clock and the ports of one vault.

    ``site`` is the Provider on the Hyper-V host, ``azure`` the disk host of the recovery side.  ``shut_down`` unmounts and
    detaches everything that uses these disk files (``VmBusy``); ``check_shut_down`` raises the error that it would raise.
    ``mounting`` locks ``VM/NAME`` of a mounted point, whose row and files change together, and ``managed_disks`` the id of a
    disk whose row and managed disk are made or deleted together.  ``roles`` has the states of the
    rig's roles, ``lag`` the data that was sent and is not applied, and ``waits`` the waits of the vault itself.
    """

    database: VaultDatabase
    notifications: Notifications
    clock: Clock
    site: Provider
    recovery: RecoverySide
    azure: DiskHostControl
    shut_down: ShutDown
    check_shut_down: ShutDown = no_check
    mounting: KeyedLock = field(default_factory=KeyedLock)
    managed_disks: KeyedLock = field(default_factory=KeyedLock)
    waits: Waits = field(default_factory=Waits)
    roles: Roles = field(init=False)
    lag: AppliedLag = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "roles", Roles(self.clock.real))
        object.__setattr__(self, "lag", AppliedLag(self.clock))

    @contextmanager
    def awaiting_apply(self, vm: str, why: str) -> Iterator[None]:
        """Register a wait of the vault until the recovery side has applied sent data."""
        place = f"apply {why}"
        self.waits.set(place, "AwaitingApply", why, vm=vm)
        try:
            yield
        finally:
            self.waits.clear(place, vm=vm)

    async def change_item(self, vm: str, change: Callable[[Session, ItemRow], T]) -> T:
        """Change an item in one transaction, then wake all tasks that wait for the VM.

        Raises:
            RigError: ``VmNotFound``.
        """
        result = await self.database.transact(lambda session: change(session, find_item(session, vm)))
        self.notifications.notify(vm)
        return result

    async def retry_while_away(
        self, what: str, vm: str, work: Callable[[], Awaitable[T]], *, repeatable: bool = True, lost_is_final: bool = True
    ) -> T:
        """Do ``work`` for an operation outside a job (:meth:`Roles.retry_while_away`) and register its waits."""
        place = f"{what} {uuid.uuid4()}"  # two callers can start the same operation
        with self.waits.waiting(place, vm=vm) as on_wait:
            return await self.roles.retry_while_away(
                work, on_wait=on_wait, repeatable=repeatable, lost_is_final=lost_is_final
            )
