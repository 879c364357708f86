"""Managed disks for a recovery side's disk host: see :class:`siterig.blockfs.disk.views.Views`."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from siterig.azure_emu.contracts.ports import DamageReports
from siterig.azure_emu.disks.pins import pin, pins, unpin, unpin_holder
from siterig.azure_emu.disks.view import open_view
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.layers.layer import Layer, ViewFaults

_log = structlog.get_logger("siterig.azure_emu.disks.view_provider")


WATCH_S = 1.0
UNREPORTED_MAX = 1000
"""So many are kept for a vault that does not answer; a scrub knows better."""


@dataclass(frozen=True, slots=True)
class _Met:
    """Damage that a read met: byte ``offset`` of a file of a managed disk's, in its state at ``position``."""

    disk_id: str
    path: str
    offset: int
    position: int


@dataclass(slots=True)
class _Watched:
    """A view that was opened, and how many of its faults were told."""

    store: Path
    position: int
    holder: str
    faults: ViewFaults
    names: list[str]
    told: int = 0

    def tell(self) -> list[_Met]:
        """Log what is new; the same for a report."""
        count, last = self.faults.seen()
        met = []
        for fault in last[-(count - self.told) :] if count > self.told else ():
            _log.error(
                "damage_not_served",
                file=self.names[fault.source],
                byte=fault.source_offset,
                disk=self.store.name,
                disk_byte=fault.offset,
                position=self.position,
                holder=self.holder,
                error=os.strerror(fault.error),
            )
            met.append(_Met(self.store.name, self.names[fault.source], fault.source_offset, self.position))
        self.told = count
        return met


class StoreViews:
    """Of all managed disks in ``disks``, one folder each."""

    def __init__(self, disks: Path) -> None:
        self._disks = disks
        self._watched: list[_Watched] = []
        self._unreported: dict[_Met, None] = {}
        self._changing = threading.Lock()

    def open(self, managed_disk: str, position: int, holder: str) -> Layer:
        """Pin, then open; nothing stays pinned if that fails and was not before."""
        store = self._disks / managed_disk
        before = {each.pin_id for each in pins(store)} if store.is_dir() else set()
        pin_id = pin(store, position, holder)
        try:
            view = open_view(store, position)
        except BaseException:
            if pin_id not in before:
                unpin(store, pin_id)
            raise
        watched = _Watched(store, position, holder, view.faults, view.source_names)
        with self._changing:
            self._watched.append(watched)
        return view

    def release(self, managed_disk: str, holder: str) -> None:
        """See :class:`siterig.blockfs.disk.views.Views`."""
        store = self._disks / managed_disk
        unpin_holder(store, holder)
        with self._changing:
            for each in self._watched:
                if (each.store, each.holder) == (store, holder):
                    self._note(each)
            self._watched = [each for each in self._watched if (each.store, each.holder) != (store, holder)]

    def _note(self, watched: _Watched) -> None:
        for met in watched.tell():
            if len(self._unreported) < UNREPORTED_MAX:
                self._unreported[met] = None

    async def watch(self, reports: DamageReports) -> None:
        """Log and report what views did not serve, by file and byte, until cancelled: a reader is told of an I/O error only.

        What cannot be reported is kept, and tried again.
        """
        while True:
            await trio.sleep(WATCH_S)
            with self._changing:
                for each in self._watched:
                    self._note(each)
                waiting = list(self._unreported)
            try:
                for met in waiting:
                    await reports.damage_met(disk_id=met.disk_id, path=met.path, offset=met.offset, position=met.position)
                    with self._changing:
                        del self._unreported[met]
            except RigError as exc:
                _log.info("damage_not_reported_yet", code=exc.code, reason=exc.message)

    def reconcile(self, kind: str, holders: Collection[str]) -> None:
        """See :class:`siterig.blockfs.disk.views.Views`; a store that cannot be read is left as it is."""
        if not self._disks.is_dir():
            return
        for store in self._disks.iterdir():
            if store.name.startswith(".") or not store.is_dir():
                continue
            try:
                for each in pins(store):
                    if each.holder.startswith(f"{kind} ") and each.holder not in holders:
                        unpin(store, each.pin_id)
            except RigError as exc:
                _log.warning("pins_not_reconciled", store=str(store), code=exc.code, message=exc.message)
