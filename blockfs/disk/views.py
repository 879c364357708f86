"""Contract of views: managed disks at a position, read-only and pinned, as the disk host of a recovery side uses them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.layers.disk_cipher import DiskCipher
from siterig.blockfs.layers.layer import Layer


class Views(Protocol):
    """Opens managed disks at a position, and pins the open positions so that compaction does not pass them.

    A holder is a text that names the user of a position: a kind, a space, a name.  Any thread may call.
    """

    def key_id(self, managed_disk: str) -> str | None:
        """Return the id of the key that encrypts a managed disk; None if its bytes are not encrypted."""
        ...

    def cipher(self, managed_disk: str, key_id: str) -> DiskCipher:
        """Return the cipher with a key of a managed disk, even if that disk is deleted.

        Raises:
            RigError: ``KeyRevoked``; ``KeyMissing`` if the vault has another key, or none.
        """
        ...

    async def prepare(self, managed_disk: str, *, is_needed: bool = False) -> None:
        """Ask for the key of a managed disk, which :meth:`cipher` and :meth:`open` then use in a thread; on the trio thread.

        Args:
            managed_disk: id of the managed disk.
            is_needed: ask also if the managed disk is deleted; otherwise only if it is encrypted.

        Raises:
            RigError: ``KeyRevoked``, ``KeyMissing``; the errors of the call to the vault (recoverable) if no key is held.
        """
        ...

    def open(self, managed_disk: str, position: int, holder: str, *, stored: bool = False) -> Layer:
        """Return a read-only layer with a managed disk as it was at a position.

        The position is durably pinned for the holder before the call returns.  It stays pinned until :meth:`release`, even
        if the layer is closed or the process ends.

        Args:
            managed_disk: id of the managed disk.
            position: the position.
            holder: the holder of the pin.
            stored: return the bytes as they are stored, so those of an encrypted managed disk encrypted.

        Raises:
            RigError: ``InvalidPosition``, ``KeyRevoked``, ``KeyMissing``.
        """
        ...

    def release(self, managed_disk: str, holder: str) -> None:
        """Remove the pins of ``holder`` on a managed disk; does nothing if it has none, or if the disk is deleted."""
        ...

    def reconcile(self, kind: str, holders: Collection[str]) -> None:
        """Remove the pins of all holders of this kind except the given ones; a kill leaves such pins."""
        ...


def open_counted(views: Views, managed_disk: str, position: int, holder: str, *, stored: bool = False) -> Layer:
    """Open a view and count the bytes that it stores, which takes long if it has very many ranges of data."""
    view = views.open(managed_disk, position, holder, stored=stored)
    try:
        _ = view.stored_bytes
    except BaseException:
        view.close()
        raise
    return view


class PlainViews(Views):
    """The part of the contract for managed disks that are not encrypted."""

    def key_id(self, managed_disk: str) -> str | None:
        """Return None: nothing is encrypted."""

    async def prepare(self, managed_disk: str, *, is_needed: bool = False) -> None:
        """Do nothing: there are no keys."""

    def cipher(self, managed_disk: str, key_id: str) -> DiskCipher:
        raise RigError(Code.KeyMissing, f"managed disk {managed_disk} is encrypted with key {key_id}; this host has no keys")


class OpenedView(Views):
    """One view that is open and pinned already; the code that opened it releases it."""

    def __init__(self, views: Views, view: Layer) -> None:
        """Give out ``view``; ``views`` has its key."""
        self._views = views
        self._view = view

    def key_id(self, managed_disk: str) -> str | None:
        return self._views.key_id(managed_disk)

    async def prepare(self, managed_disk: str, *, is_needed: bool = False) -> None:
        """Do nothing: the code that opened the view has asked for the key."""

    def cipher(self, managed_disk: str, key_id: str) -> DiskCipher:
        return self._views.cipher(managed_disk, key_id)

    def open(self, managed_disk: str, position: int, holder: str, *, stored: bool = False) -> Layer:
        """Return the view, which was opened as it is needed."""
        return self._view

    def release(self, managed_disk: str, holder: str) -> None:
        """Do nothing: the code that opened the view releases it."""

    def reconcile(self, kind: str, holders: Collection[str]) -> None:
        """Do nothing: the code that opened the view releases it."""
