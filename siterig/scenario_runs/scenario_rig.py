"""The rig of a scenario: it can be stopped and started again, and its faults and clock are controlled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import trio

from siterig.accounts.account_choice import AccountChoice
from siterig.azure_emu.user_account.secret import parse_secret
from siterig.azure_emu.user_account.source import read_authority, read_source
from siterig.azure_emu.vault.model.resync_window import ResyncWindow
from siterig.blockfs.clocks.rig_clock_control import RigClockControl
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.core.fault_contract import DIRECTOR, FaultControl
from siterig.core.limits import Limits
from siterig.core.paths import Layout
from siterig.core.supervisor_contract import SupervisorControl
from siterig.rpc import directory
from siterig.scenarios.contracts.rig import Rig
from siterig.scenarios.files.topology import Topology
from siterig.supervisor import launch
from siterig.testing.testbed import Testbed

CLOCK_PAGE = "clock"
"""The page of the rig's clock, in its folder."""
Announce = Callable[[str, str], None]


class ScenarioRig(Rig, Protocol):
    """A rig as a scenario uses it."""

    root: Path
    """The folder of the rig."""
    supervisor: SupervisorControl

    faults: FaultControl
    """The control of faults, after :meth:`start_director`."""

    async def start(self, announce: Announce) -> None:
        """Start the rig, and return when every role is ready."""
        ...

    def clock(self) -> RigClockControl:
        """Return the control of the rig's clock; use it as a context manager."""
        ...

    def wall_ns(self) -> int:
        """Return the wall time of the rig in nanoseconds since the epoch; an operation may have moved it."""
        ...

    async def rotate_account_keys(self) -> None:
        """Replace both keys of the storage account."""
        ...

    async def set_account(self, source: str) -> None:
        """Replace the secret of the storage account by the one in a file, or in an environment variable ``env:NAME``."""
        ...

    async def start_director(self) -> None:
        """Start the role that directs faults."""
        ...

    async def stop(self) -> None:
        """End the rig; does nothing if it is down.  Cancellation does not interrupt it."""
        ...

    async def remove_blobs(self) -> None:
        """Delete the blobs of a rig that is down from a storage account of a user, which the folder of the rig outlives."""
        ...


class OwnRig(Testbed, ScenarioRig):
    """A rig in a folder of its own; it ends with this process, also if this process is killed."""

    def __init__(self, folder: Path, topology: Topology) -> None:
        super().__init__(Layout.of(folder))
        self.root = self.layout.root
        self.faults: FaultControl = directory.faults(self.layout)
        self._topology = topology
        self._launched: launch.Launched | None = None

    async def start(self, announce: Announce) -> None:
        limits = self._topology.limits
        self._launched = await launch.up(
            self.layout,
            until_eof=True,
            quick_retries=self._topology.quick_retries,
            limits=Limits(
                log_share_max=limits.log_share_max,
                when_log_full=limits.when_log_full,
                snapshot_share_max=limits.snapshot_share_max,
            ),
            resync_window=ResyncWindow.parse(self._topology.resync_window),
            account=self._account(),
            announce=announce,
        )

    def _account(self) -> AccountChoice | None:
        """Return the account of the topology; None for Azurite, or if the rig has it already: it may have another secret."""
        source, authority = self._topology.account, self._topology.account_authority
        if source is None or self.layout.user_account.exists():
            return None
        return AccountChoice(
            parse_secret(read_source(source)), None if authority is None else read_authority(Path(authority))
        )

    def clock(self) -> RigClockControl:
        return RigClockControl(self.root / CLOCK_PAGE)

    def wall_ns(self) -> int:
        now_ns = SYSTEM_CLOCK.wall_ns()
        if not (self.root / CLOCK_PAGE).exists():
            return now_ns
        with self.clock() as clock:
            return now_ns + clock.state().wall_ahead_ns

    async def rotate_account_keys(self) -> None:
        await directory.account_keys(self.layout).rotate_account_keys()

    async def set_account(self, source: str) -> None:
        from siterig.accounts.replacement import replace_secret  # noqa: PLC0415 (it loads the SDK, which is slow)

        await replace_secret(self.layout, parse_secret(read_source(source)))

    async def start_director(self) -> None:
        await self.supervisor.start_role(name=DIRECTOR)

    async def stop(self) -> None:
        launched, self._launched = self._launched, None
        if launched is not None:
            with trio.CancelScope(shield=True):
                await launched.end()

    async def remove_blobs(self) -> None:
        if self.layout.user_account.exists():
            from siterig.accounts.rig_account import remove_blobs  # noqa: PLC0415 (it loads the SDK, which is slow)

            await remove_blobs(self.layout)
