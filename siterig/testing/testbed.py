"""A running rig as an object, for tests, scenarios and the drill."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from siterig.azure_emu.vault.model.api import VaultApi
from siterig.blockfs.contracts.control import DiskHostControl
from siterig.cli import sites
from siterig.core.paths import Layout
from siterig.core.supervisor_contract import SupervisorControl
from siterig.rpc import directory
from siterig.supervisor import launch


class Testbed:
    """Connections to a rig that is up; implements :class:`siterig.scenarios.contracts.rig.Rig`.

    Nothing needs to be closed.
    """

    __test__ = False  # its name is no test's

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.vault: VaultApi = directory.vault(layout)
        self.site: DiskHostControl = directory.site(layout)
        self.azure: DiskHostControl = directory.azure(layout)
        self.supervisor: SupervisorControl = directory.supervisor(layout)

    @classmethod
    @asynccontextmanager
    async def up(
        cls, folder: Path, *, announce: Callable[[str, str], None] = lambda _role, _state: None
    ) -> AsyncIterator[Testbed]:
        """Run a rig in ``folder`` for the duration of the block.

        The rig ends with the block, also if guests still use it and if this process is killed.  Failed replication is
        retried after seconds, which suits the short intervals of tests.
        """
        layout = Layout.of(folder)
        launched = await launch.up(layout, until_eof=True, quick_retries=True, announce=announce)
        try:
            yield cls(layout)
        finally:
            await launched.end()

    @property
    def folder(self) -> Path:
        """A folder for files of the scenario; it is on no virtual disk."""
        return self.layout.scratch

    @property
    def site_position(self) -> Path:
        """The site's position file (:mod:`siterig.blockfs.changelog.position_counter`)."""
        return self.layout.site_disks / "position"

    @property
    def azure_position(self) -> Path:
        """The recovery side's position file."""
        return self.layout.azure_vms / "position"

    async def kill_site(self) -> None:
        """Kill the disk host of the site, then the agent, with SIGKILL; both stay down."""
        await sites.lose(self.supervisor)

    async def restart_site(self) -> None:
        """Start the disk host and the agent of the site again, and return when they answer."""
        await sites.restore(self.supervisor)
