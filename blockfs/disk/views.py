"""Managed disks as a recovery side's disk host sees them: read-only, at a position, held while something lies on them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from siterig.blockfs.layers.layer import Layer


class Views(Protocol):
    """Opens managed disks, and keeps the positions that are open from being folded away.

    A holder is a text that says what lies on a position: a kind, a space, a name.  Any thread may call.
    """

    def open(self, managed_disk: str, position: int, holder: str) -> Layer:
        """Managed disk ``managed_disk`` (its id) as it was at ``position``, read-only.

        The position is durably held for ``holder`` before the call returns, and stays so until :meth:`release`, whatever
        becomes of the layer or the process.  ``InvalidPosition``.
        """
        ...

    def release(self, managed_disk: str, holder: str) -> None:
        """``holder`` holds nothing of ``managed_disk`` any more; no-op if it did not, or if the managed disk is gone."""
        ...

    def reconcile(self, kind: str, holders: Collection[str]) -> None:
        """Of this kind, only these hold anything: let go for all others, which a kill left behind."""
        ...


def open_counted(views: Views, managed_disk: str, position: int, holder: str) -> Layer:
    """:meth:`Views.open`, and count what the view stores, which takes long if it has very many ranges of data."""
    view = views.open(managed_disk, position, holder)
    try:
        _ = view.stored_bytes
    except BaseException:
        view.close()
        raise
    return view


class OpenedView:
    """A view that is open, and held, already."""

    def __init__(self, view: Layer) -> None:
        self._view = view

    def open(self, _managed_disk: str, _position: int, _holder: str) -> Layer:
        """The view."""
        return self._view

    def release(self, managed_disk: str, holder: str) -> None:
        """Whoever opened it does that."""

    def reconcile(self, kind: str, holders: Collection[str]) -> None:
        """Whoever opened it does that."""
