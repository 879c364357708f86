"""Opens views of managed disks for the recovery side's disk host, and reports the damage that their readers meet."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog
import trio

from siterig.azure_emu.contracts.reports import DamageReports
from siterig.azure_emu.disks.pins import pin, pins, unpin, unpin_holder
from siterig.azure_emu.disks.view import needed_key, open_disk, open_view
from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.disk.views import Views
from siterig.blockfs.layers.disk_cipher import DiskCipher
from siterig.blockfs.layers.layer import Layer, ViewFaults
from siterig.blockfs.transfer.envelope import DataKey

_log = structlog.get_logger("siterig.azure_emu.disks.view_provider")


WATCH_S = 1.0
UNREPORTED_MAX = 1000
"""Limit of the reports that are kept while the vault does not answer; a scrub finds all damage."""


class DiskKeySource(Protocol):
    """Gives out the keys of managed disks."""

    async def load(self, managed_disk: str) -> None:
        """Ask for the key of a managed disk, which may be deleted; on the trio thread.

        Raises:
            RigError: ``KeyRevoked``, ``KeyMissing``; the errors of the call to the vault (recoverable) if no key is held.
        """
        ...

    def get(self, managed_disk: str) -> DataKey:
        """Return the key that was asked for; any thread may call.

        Raises:
            RigError: ``KeyRevoked``, ``KeyMissing``; the error of the last question.
        """
        ...


class NoKeys(DiskKeySource):
    """The key source of a process that serves no encrypted managed disk."""

    async def load(self, managed_disk: str) -> None:
        self.get(managed_disk)

    def get(self, managed_disk: str) -> DataKey:
        raise RigError(Code.KeyMissing, f"managed disk {managed_disk} is encrypted, and this process has no keys")


@dataclass(frozen=True, slots=True)
class _ReadDamage:
    """Damage that a read of the state at ``position`` met, at byte ``offset`` of a file of a managed disk."""

    disk_id: str
    path: str
    offset: int
    position: int


@dataclass(slots=True)
class _OpenView:
    """An open view, and the number of its faults that are logged."""

    folder: Path
    position: int
    holder: str
    faults: ViewFaults
    names: list[str]
    logged: int = 0

    def log_new(self) -> list[_ReadDamage]:
        """Log the faults that are new, and return them for reports."""
        count, last = self.faults.seen()
        damages = []
        for fault in last[-(count - self.logged) :] if count > self.logged else ():
            _log.error(
                "damage_not_served",
                file=self.names[fault.source],
                byte=fault.source_offset,
                disk=self.folder.name,
                disk_byte=fault.offset,
                position=self.position,
                holder=self.holder,
                error=os.strerror(fault.error),
            )
            damages.append(_ReadDamage(self.folder.name, self.names[fault.source], fault.source_offset, self.position))
        self.logged = count
        return damages


class ManagedDiskViews(Views):
    """Provides views of all managed disks in one folder; any thread may call it."""

    def __init__(self, disks: Path, clock: Clock = SYSTEM_CLOCK, keys: DiskKeySource | None = None) -> None:
        """Provide managed disks.

        Args:
            disks: the folder of the managed disks.
            clock: the time.
            keys: gives out the keys of encrypted managed disks; without it none of them can be opened.
        """
        self._keys = keys or NoKeys()
        self._disks = disks
        self._clock = clock
        self._views: list[_OpenView] = []
        self._unreported: dict[_ReadDamage, None] = {}
        self._changing = threading.Lock()

    def key_id(self, managed_disk: str) -> str | None:
        return needed_key(self._disks / managed_disk)

    async def prepare(self, managed_disk: str, *, is_needed: bool = False) -> None:
        if is_needed or await trio.to_thread.run_sync(self.key_id, managed_disk) is not None:
            await self._keys.load(managed_disk)

    def cipher(self, managed_disk: str, key_id: str) -> DiskCipher:
        key = self._keys.get(managed_disk)
        if str(key.key_id) != key_id:
            raise RigError(
                Code.KeyMissing,
                f"key {key_id} of managed disk {managed_disk} is needed, and the vault has {key.key_id}: "
                "restore the vault's database",
            )
        return DiskCipher(key.secret)

    def open(self, managed_disk: str, position: int, holder: str, *, stored: bool = False) -> Layer:
        """Pin the position, then open the view; if that fails, a pin that is new is removed."""
        folder = self._disks / managed_disk
        key = None if stored or self.key_id(managed_disk) is None else self._keys.get(managed_disk)
        before = {each.pin_id for each in pins(folder)} if folder.is_dir() else set()
        pin_id = pin(folder, position, holder, self._clock)
        try:
            view = open_view(folder, position) if stored else open_disk(folder, position, key)
        except BaseException:
            if pin_id not in before:
                unpin(folder, pin_id)
            raise
        opened = _OpenView(folder, position, holder, view.faults, view.source_names)
        with self._changing:
            self._views.append(opened)
        return view

    def release(self, managed_disk: str, holder: str) -> None:
        """Remove the pins of ``holder`` on the managed disk, and watch its views no more."""
        folder = self._disks / managed_disk
        unpin_holder(folder, holder)
        with self._changing:
            for each in self._views:
                if (each.folder, each.holder) == (folder, holder):
                    self._collect(each)
            self._views = [each for each in self._views if (each.folder, each.holder) != (folder, holder)]

    def _collect(self, view: _OpenView) -> None:
        for damage in view.log_new():
            if len(self._unreported) < UNREPORTED_MAX:
                self._unreported[damage] = None

    async def watch(self, reports: DamageReports) -> None:
        """Log and report damage by file and byte until cancelled; the reader of a view gets only an I/O error.

        A report that fails is kept and repeated.
        """
        while True:
            await self._clock.real.sleep(WATCH_S)
            with self._changing:
                for each in self._views:
                    self._collect(each)
                waiting = list(self._unreported)
            try:
                for met in waiting:
                    await reports.damage_met(disk_id=met.disk_id, path=met.path, offset=met.offset, position=met.position)
                    with self._changing:
                        del self._unreported[met]
            except RigError as exc:
                _log.info("damage_not_reported_yet", code=exc.code, reason=exc.message)

    def reconcile(self, kind: str, holders: Collection[str]) -> None:
        """Remove the pins of this kind whose holder is not in ``holders``; skip a managed disk that cannot be read."""
        if not self._disks.is_dir():
            return
        for folder in self._disks.iterdir():
            if folder.name.startswith(".") or not folder.is_dir():
                continue
            try:
                for each in pins(folder):
                    if each.holder.startswith(f"{kind} ") and each.holder not in holders:
                        unpin(folder, each.pin_id)
            except RigError as exc:
                _log.warning("pins_not_reconciled", disk=folder.name, code=exc.code, reason=exc.message)
