"""A running rig as an object, for tests, scenarios and the drill."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cached_property
from pathlib import Path

from siterig.azure_emu.vault.model.api import VaultApi
from siterig.blockfs.contracts.control import DiskHostControl
from siterig.cli import fault_director, sites
from siterig.core.fault_contract import FaultControl
from siterig.core.paths import Layout
from siterig.core.supervisor_contract import SupervisorControl
from siterig.rpc import directory
from siterig.scenarios.contracts.rig import Rig
from siterig.supervisor import launch


class Testbed(Rig):
    """Connections to a rig that is up.

    Nothing needs to be closed.
    """

    __test__ = False  # its name is no test's

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
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

    @cached_property
    def vault(self) -> VaultApi:
        return directory.vault(self.layout)

    @cached_property
    def site(self) -> DiskHostControl:
        return directory.site(self.layout)

    @cached_property
    def azure(self) -> DiskHostControl:
        return directory.azure(self.layout)

    @property
    def folder(self) -> Path:
        return self.layout.scratch

    @property
    def site_position(self) -> Path:
        return self.layout.site_disks / "position"

    @property
    def azure_position(self) -> Path:
        return self.layout.azure_vms / "position"

    async def start_faults(self) -> FaultControl:
        """Return the director of the rig's faults, which the first call starts."""
        return await fault_director.started_director(self.layout.root)

    async def kill_site(self) -> None:
        await sites.lose(self.supervisor)

    async def restart_site(self) -> None:
        await sites.restore(self.supervisor)
