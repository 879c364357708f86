"""The world of a simulation: both sides of a rig with one VM, put together of the production objects.

This module does what :mod:`siterig.roles` does for processes.  It replaces the implementation of contracts only: the links,
the cache account, the guests, the snapshot's file, the clock, the supervisor.
"""

from __future__ import annotations

import errno
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import trio

from siterig.azure_emu.applier.applier import Applier
from siterig.azure_emu.applier.disk_keys import DiskKeys
from siterig.azure_emu.applier.service import RecoveryService
from siterig.azure_emu.contracts.recovery_side import RecoverySide
from siterig.azure_emu.contracts.reports import ApplierReports, RoleReports
from siterig.azure_emu.disks.view_provider import ManagedDiskViews
from siterig.azure_emu.vault.model.api import VaultApi
from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.contracts.control import DiskHostControl
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.host.disk_host import DiskHost
from siterig.blockfs.sides.provider import Provider
from siterig.blockfs.sides.vault_link import VaultLink
from siterig.blockfs.transfer.bundled_account import BundledAccount
from siterig.blockfs.transfer.cache_account import BlobAccount
from siterig.blockfs.transfer.data_keys import DataKeys
from siterig.blockfs.transfer.part_cipher import KeyedPartCipher
from siterig.blockfs.transfer.sealed_account import SealedAccount
from siterig.replication.engine.snapshots import SnapshotFile
from siterig.replication.guests.host_guests import Guests
from siterig.replication.hyperv.agent import HyperVAgent
from siterig.scenarios.simulation.rig import vault_files
from siterig.scenarios.simulation.rig.account import SimulatedAccount
from siterig.scenarios.simulation.rig.clock import HostClock
from siterig.scenarios.simulation.rig.guests import SimulatedGuests
from siterig.scenarios.simulation.rig.mounted_sources import MountedSources
from siterig.scenarios.simulation.rig.network import CallObserver, SimulatedNetwork
from siterig.scenarios.simulation.rig.plan import RunPlan
from siterig.scenarios.simulation.rig.role import SimulatedRole
from siterig.scenarios.simulation.rig.snapshot_file import HostSnapshot
from siterig.scenarios.simulation.rig.supervisor import SimulatedSupervisor

VM = "web01"
SIZES = {"data": 256 << 10, "os": 512 << 10}
RETRY_DELAYS_S = (1.0, 2.0, 4.0, 8.0, 10.0)
APPLIER_POLL_S = 15.0
HEALTH_ROUND_S = 30.0
"""The time between two rounds of the vault's watch for standstills: the vault of a rig makes one every 2 seconds."""


class World:
    """Both sides, the network between them, and the faults that are in force."""

    def __init__(
        self, folder: Path, plan: RunPlan, observer: CallObserver, parts: WorldParts, *, begun_s: float = 0.0
    ) -> None:
        """Make the roles; nothing runs yet.

        Args:
            folder: an empty folder in memory.
            plan: the plan.
            observer: sees every call.
            parts: makes the replaceable parts; a test that plants a bug makes others.
            begun_s: the time that the world has existed for.
        """
        draws = partial(_stream, plan.seed)
        self.folder = folder
        self.plan = plan
        self.parts = parts
        self.clocks = {host: HostClock(host, begun_s) for host in ("site", "recovery")}
        site, recovery = self.clocks["site"], self.clocks["recovery"]
        self.network = SimulatedNetwork(draws("network"), recovery, observer)
        self.account = SimulatedAccount(draws("account"))
        self.guests = SimulatedGuests(site)
        self.agent_guests = parts.guests(self.guests)
        self.draws = draws("guest")
        self.site_host: DiskHost | None = None
        self.azure_host: DiskHost | None = None
        self.on_site_opened: Callable[[DiskHost], None] = lambda _host: None
        self.on_azure_opened: Callable[[DiskHost], None] = lambda _host: None
        self.roles = {
            "azurite": SimulatedRole("azurite", recovery, self._azurite),
            "applier": SimulatedRole("applier", recovery, self._applier),
            "azure": SimulatedRole("azure", recovery, self._azure),
            "vault": SimulatedRole("vault", recovery, self._vault),
            "site": SimulatedRole("site", site, self._site),
            "agent": SimulatedRole("agent", site, self._agent),
        }
        outside = {name: SimulatedRole(name, recovery, _nothing) for name in ("cli", "supervisor")}
        self.supervisor = SimulatedSupervisor(list(self.roles.values()), recovery, draws("restarts"), self._on_end)
        self.supervisor.reports = self.network.link(outside["supervisor"], self.roles["vault"], RoleReports)
        self.vault = self.network.link(outside["cli"], self.roles["vault"], VaultApi)
        self.observer = observer
        if not (folder / "vault.db").exists():
            vault_files.provide_empty(folder / "vault.db")

    @property
    def managed(self) -> Path:
        """The folder of the managed disks."""
        return self.folder / "managed"

    @property
    def folders(self) -> dict[str, tuple[Path, ...]]:
        """The folders of each host that a full disk is about."""
        return {"site": (self.folder / "site", self.folder / "agent"), "recovery": (self.managed,)}

    def _link(self, client: SimulatedRole, server: str, protocol: type) -> object:
        return self.parts.link(self, client.name, self.network.link(client, self.roles[server], protocol), protocol)

    def _on_end(self, role: SimulatedRole) -> None:
        if role.failure is not None:
            self.observer.bug(f"role {role.name}", role.failure)
        self.parts.killed(self, role.name)

    # --- the roles, as siterig/roles starts them ----------------------------------------------------------------

    async def _azurite(self, role: SimulatedRole, ready: Callable[[], None]) -> None:
        role.services[BlobAccount] = self.account
        ready()
        await trio.sleep_forever()

    async def _site(self, role: SimulatedRole, ready: Callable[[], None]) -> None:
        # The disks have few blocks, so the usual share would be used up by a handful of writes during a verification.
        host = DiskHost(
            self.folder / "site", self.folder / "mnt", snapshot_share_max=1.0, waits=role.waits, clock=role.clock
        )
        try:
            if self.plan.loses_power:
                for disk in host.registry.all_disks():
                    disk.faults.keep_unsynced()
            self.site_host = host
            self.on_site_opened(host)
            role.services[DiskHostControl] = self.parts.host(host)
            ready()
            await host.run_maintenance()
        finally:
            self.site_host = None
            host.abandon()
            host.positions.close()

    async def _agent(self, role: SimulatedRole, ready: Callable[[], None]) -> None:
        keys = cast(DataKeys, self._link(role, "vault", DataKeys))
        cipher = KeyedPartCipher(keys, role.clock)
        account = cast(BlobAccount, self._link(role, "azurite", BlobAccount))
        agent = HyperVAgent(
            host=cast(DiskHostControl, self._link(role, "site", DiskHostControl)),
            cache=SealedAccount(BundledAccount(account, role.clock, is_writer=True), cipher),
            vault=cast(VaultLink, self._link(role, "vault", VaultLink)),
            folder=self.folder / "agent",
            clock=role.clock,
            retry_delays_s=RETRY_DELAYS_S,
            guests=self.agent_guests,
            open_snapshot=self._open_snapshot,
            waits=role.waits,
            drop_keys=cipher.forget,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(agent.run)
            role.services[Provider] = agent
            ready()

    def _open_snapshot(self, path: Path) -> SnapshotFile:
        host = self.site_host
        if host is None:
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected", str(path))
        return self.parts.snapshot(HostSnapshot(lambda: self.site_host, host, path))

    async def _applier(self, role: SimulatedRole, ready: Callable[[], None]) -> None:
        keys = cast(DataKeys, self._link(role, "vault", DataKeys))
        cipher = KeyedPartCipher(keys, role.clock)
        account = cast(BlobAccount, self._link(role, "azurite", BlobAccount))
        cache = SealedAccount(BundledAccount(account, role.clock), cipher)
        reports = cast(ApplierReports, self._link(role, "vault", ApplierReports))
        applier = Applier(self.managed, cache, reports, role.waits, role.clock, keys=keys)
        service = RecoveryService(applier, cache, cipher.forget)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(partial(service.run, poll_s=APPLIER_POLL_S))
                role.services[RecoverySide] = MountedSources(service, lambda: self.azure_host)
                ready()
        finally:
            applier.close()

    async def _azure(self, role: SimulatedRole, ready: Callable[[], None]) -> None:
        keys = DiskKeys(
            self.managed, self.folder / "azure", cast(DataKeys, self._link(role, "vault", DataKeys)), role.waits, role.clock
        )
        await keys.load_all()
        views = ManagedDiskViews(self.managed, role.clock, keys)
        host = DiskHost(self.folder / "azure", self.folder / "azure-mnt", views=views, waits=role.waits, clock=role.clock)
        try:
            self.azure_host = host
            self.on_azure_opened(host)
            role.services[DiskHostControl] = host
            ready()
            await host.open_waiting()
        finally:
            self.azure_host = None
            host.abandon()
            host.positions.close()

    async def _vault(self, role: SimulatedRole, ready: Callable[[], None]) -> None:
        async def shut_down(_disks: list[Path]) -> None:
            await trio.lowlevel.checkpoint()

        vault = Vault(
            vault_files.engine(self.folder / "vault.db"),
            keys=self.folder / "vault.keys",
            provider=cast(Provider, self._link(role, "agent", Provider)),
            recovery=cast(RecoverySide, self._link(role, "applier", RecoverySide)),
            azure_host=cast(DiskHostControl, self._link(role, "azure", DiskHostControl)),
            shut_down=shut_down,
            clock=role.clock,
            waits=role.waits,
        )
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(vault.run)
                nursery.start_soon(vault.run_policies)
                nursery.start_soon(self._watch_standstill, vault)
                role.services |= {
                    VaultApi: joined(vault.operations),
                    VaultLink: vault.reports,
                    ApplierReports: vault.reports,
                    RoleReports: vault.reports,
                    DataKeys: vault.data_keys,
                }
                ready()
        finally:
            vault.close()

    async def _watch_standstill(self, vault: Vault) -> None:
        while True:
            await vault.watch.round()
            await self.clocks["recovery"].sleep(HEALTH_ROUND_S)


class WorldParts:
    """Makes the parts of a world that a test may replace by others of the same contract, to plant a bug."""

    def link(self, world: World, client: str, link: object, protocol: type) -> object:
        """Return the object by which a role calls another."""
        del world, client, protocol
        return link

    def host(self, host: DiskHost) -> DiskHostControl:
        """Return the site's disk host, as the agent sees it."""
        return host

    def guests(self, guests: Guests) -> Guests:
        """Return the guests, as the agent sees them."""
        return guests

    def flush(self, disk: Disk) -> None:
        """Flush a disk for its guest."""
        disk.flush_now()

    def killed(self, world: World, role: str) -> None:
        """React to the end of a life of a role, before the next one."""

    def snapshot(self, file: SnapshotFile) -> SnapshotFile:
        """Return the file of a snapshot."""
        return file


def joined(parts: tuple[object, ...]) -> object:
    """Return an object with the public methods of several."""
    methods = {name: getattr(part, name) for part in parts for name in dir(part) if not name.startswith("_")}
    return SimpleNamespace(**methods)


def clear(folder: Path) -> None:
    """Empty a folder."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _stream(seed: int, name: str) -> random.Random:
    return random.Random(f"{seed} {name}")  # noqa: S311 (a simulation has no secrets)


async def _nothing(_role: SimulatedRole, _ready: Callable[[], None]) -> None:
    await trio.sleep_forever()
