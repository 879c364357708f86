"""The recovery side's service in a simulation: a disk that it reads through the mount has a file there when it is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from siterig.azure_emu.applier.service import RecoveryService
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.host.disk_host import DiskHost


class MountedSources:
    """The methods of a :class:`RecoveryService`.

    The export of a recovered VM's disk reads the file of the disk in the mount of the recovery side's disk host.  Here the
    file is written with the bytes that the disk has at the call; without a disk host there is no file.
    """

    def __init__(self, service: RecoveryService, host: Callable[[], DiskHost | None]) -> None:
        self._service = service
        self._host = host

    def __getattr__(self, method: str) -> Any:
        return getattr(self._service, method)

    async def export_disk(self, *, source: str, source_id: str, size_bytes: int) -> int:
        """Write the file, and export it."""
        self._show(Path(source))
        return await self._service.export_disk(source=source, source_id=source_id, size_bytes=size_bytes)

    async def data_bytes(self, *, source: str) -> int:
        """Write the file, and return its number of bytes that are not holes."""
        self._show(Path(source))
        return await self._service.data_bytes(source=source)

    def _show(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        host = self._host()
        if host is None:
            return
        try:
            disk = host.disk(path.parent.name, path.stem)
        except RigError:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(disk.read(0, disk.size_bytes))
