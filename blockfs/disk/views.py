"""Contract of views: managed disks at a position, read-only and pinned, as the disk host of a recovery side uses them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from siterig.blockfs.layers.layer import Layer


class Views(Protocol):
    """Opens managed disks at a position, and pins the open positions so that compaction does not pass them.

    A holder is a text that names the user of a position: a kind, a space, a name.  Any thread may call.
    """

    def open(self, managed_disk: str, position: int, holder: str) -> Layer:
        """Return a read-only layer with a managed disk as it was at a position.

        The position is durably pinned for the holder before the call returns.  It stays pinned until :meth:`release`, even
        if the layer is closed or the process ends.

        Args:
            managed_disk: id of the managed disk.
            position: the position.
            holder: the holder of the pin.

        Raises:
            RigError: ``InvalidPosition``.
        """
        ...

    def release(self, managed_disk: str, holder: str) -> None:
        """Remove the pins of ``holder`` on a managed disk; does nothing if it has none, or if the disk is deleted."""
        ...

    def reconcile(self, kind: str, holders: Collection[str]) -> None:
        """Remove the pins of all holders of this kind except the given ones; a kill leaves such pins."""
        ...


def open_counted(views: Views, managed_disk: str, position: int, holder: str) -> Layer:
    """Open a view and count the bytes that it stores, which takes long if it has very many ranges of data."""
    view = views.open(managed_disk, position, holder)
    try:
        _ = view.stored_bytes
    except BaseException:
        view.close()
        raise
    return view


class OpenedView(Views):
    """One view that is open and pinned already; the code that opened it releases it."""

    def __init__(self, view: Layer) -> None:
        self._view = view

    def open(self, managed_disk: str, position: int, holder: str) -> Layer:
        return self._view

    def release(self, managed_disk: str, holder: str) -> None:
        """Do nothing: the code that opened the view releases it."""

    def reconcile(self, kind: str, holders: Collection[str]) -> None:
        """Do nothing: the code that opened the view releases it."""
