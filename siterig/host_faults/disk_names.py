"""VM and name of managed disks, whose files have only an id."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import structlog

from siterig.blockfs.core.errors import RigError

_log = structlog.get_logger("faults")


class DiskNames:
    """The names of managed disks, as the vault knows them.

    Args:
        ask: returns VM and name of the managed disks by their id.
    """

    def __init__(self, ask: Callable[[], Awaitable[Mapping[str, tuple[str, str]]]]) -> None:
        self._ask = ask
        self._known: dict[str, tuple[str, str]] = {}

    def name_of(self, disk_id: str) -> tuple[str, str] | None:
        """Return VM and name of a managed disk; None if they are not known."""
        return self._known.get(disk_id)

    async def learn(self) -> bool:
        """Ask for the names again, and return True if they have changed; without an answer the known ones stay."""
        try:
            names = dict(await self._ask())
        except RigError as error:
            _log.info("disk_names_unknown", code=error.code, reason=error.message)
            return False
        changed, self._known = names != self._known, names
        return changed
