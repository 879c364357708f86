"""Managed disks for a recovery side's disk host: see :class:`blockfs.views.Views`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import structlog

from azure_emu.disk_view import open_view
from azure_emu.pins import pin, pins, unpin, unpin_holder
from blockfs.errors import RigError
from blockfs.layers import Layer

_log = structlog.get_logger("azure_emu.store_views")


class StoreViews:
    """Of all managed disks in ``disks``, one folder each."""

    def __init__(self, disks: Path) -> None:
        self._disks = disks

    def open(self, store: Path, position: int, holder: str) -> Layer:
        """Pin, then open; nothing stays pinned if that fails and was not before."""
        before = {each.pin_id for each in pins(store)} if store.is_dir() else set()
        pin_id = pin(store, position, holder)
        try:
            return open_view(store, position)
        except BaseException:
            if pin_id not in before:
                unpin(store, pin_id)
            raise

    def let_go(self, store: Path, holder: str) -> None:
        """See :class:`blockfs.views.Views`."""
        unpin_holder(store, holder)

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
