"""The contract between a drill and the rig that it runs on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from siterig.azure_emu.vault.model.api import VaultApi
from siterig.blockfs.contracts.control import DiskHostControl

Update = Callable[[int, int], None]
"""Called with (bytes done, total bytes), from any thread."""


class Screen(Protocol):
    """The output of a drill; it escapes every text."""

    def line(self, *parts: str | tuple[str, str]) -> None:
        """Print one line of texts and of pairs (text, style): ``bold``, ``dim``, ``red``, ``green``, ``cyan``."""
        ...

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print a table."""
        ...

    def bar(self, title: str) -> AbstractContextManager[Update]:
        """Show a progress bar for work in bytes, on a terminal only; a total of 0 is unknown."""
        ...


class Rig(Protocol):
    """A rig that is up: its services, and the two operations of its supervisor that the drill needs."""

    @property
    def vault(self) -> VaultApi:
        """The vault's operations."""
        ...

    @property
    def site(self) -> DiskHostControl:
        """The disk host of the source VMs."""
        ...

    @property
    def azure(self) -> DiskHostControl:
        """The disk host of the recovered VMs."""
        ...

    @property
    def folder(self) -> Path:
        """An empty folder for the drill's own files: mount points, acknowledgement files; on no virtual disk."""
        ...

    @property
    def site_position(self) -> Path:
        """The site's position file (8 bytes, little endian, see :mod:`siterig.blockfs.changelog.position_counter`)."""
        ...

    @property
    def azure_position(self) -> Path:
        """The recovery side's position file."""
        ...

    async def kill_site(self) -> None:
        """Kill the disk host and the agent of the site with SIGKILL, and hold them down."""
        ...

    async def restart_site(self) -> None:
        """Start the disk host and the agent of the site again, and return when they answer."""
        ...
