"""Managed disks for a recovery side's disk host: see :class:`blockfs.views.Views`."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from azure_emu.disk_view import open_view
from azure_emu.pins import pin, pins, unpin, unpin_holder
from blockfs.errors import RigError
from blockfs.layers import Layer, ViewFaults

_log = structlog.get_logger("azure_emu.store_views")


WATCH_S = 1.0


@dataclass(slots=True)
class _Watched:
    """A view that was opened, and how many of its faults were told."""

    store: Path
    position: int
    holder: str
    faults: ViewFaults
    names: list[str]
    told: int = 0

    def tell(self) -> None:
        count, last = self.faults.seen()
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
        self.told = count


class StoreViews:
    """Of all managed disks in ``disks``, one folder each."""

    def __init__(self, disks: Path) -> None:
        self._disks = disks
        self._watched: list[_Watched] = []
        self._changing = threading.Lock()

    def open(self, store: Path, position: int, holder: str) -> Layer:
        """Pin, then open; nothing stays pinned if that fails and was not before."""
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

    def let_go(self, store: Path, holder: str) -> None:
        """See :class:`blockfs.views.Views`."""
        unpin_holder(store, holder)
        with self._changing:
            self._watched = [each for each in self._watched if (each.store, each.holder) != (store, holder)]

    async def watch(self) -> None:
        """Log what views did not serve, by file and byte, until cancelled: who reads is only told of an I/O error."""
        while True:
            await trio.sleep(WATCH_S)
            for each in self._watched:
                each.tell()

    def reconcile(self, kind: str, holders: Collection[str]) -> None:
        """See :class:`blockfs.views.Views`; a store that cannot be read is left as it is."""
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
