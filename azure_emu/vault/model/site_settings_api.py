"""The part of the vault's API for what the site's host keeps: the bandwidth limit, and scripts of VMs."""

from __future__ import annotations

from typing import Protocol

from siterig.blockfs.contracts.app_script import AppScript
from siterig.blockfs.contracts.bandwidth import BandwidthLimit
from siterig.blockfs.core.deadlines import ASKING_S, deadline


class AppScriptApi(Protocol):
    """The operations on the scripts that prepare applications for application-consistent points."""

    @deadline(ASKING_S)
    async def app_script(self, *, vm: str) -> AppScript | None:
        """Return the script of a VM of the site; None if it has none.

        Raises:
            RigError: ``VmNotFound``.
        """
        ...

    async def set_app_script(self, *, vm: str, script: AppScript | None) -> None:
        """Change the script of a VM of the site, protected or not; None: it has none.

        Raises:
            RigError: ``VmNotFound``, ``AppScriptUnusable``.
        """
        ...


class BandwidthApi(Protocol):
    """The operations on the bandwidth limit of the site's host."""

    @deadline(ASKING_S)
    async def bandwidth(self) -> BandwidthLimit | None:
        """Return the limit of the uploads of the site's host; None if there is none."""
        ...

    async def set_bandwidth(self, *, limit: BandwidthLimit | None) -> None:
        """Limit the uploads of the site's host, at once and for good; None for no limit.

        Raises:
            RigError: ``InvalidLimit``.
        """
        ...
