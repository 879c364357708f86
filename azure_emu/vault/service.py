"""The vault: the parts of one vault, put together, and the tasks that run in it.

Multi-task safety: any number of tasks can call the operations at the same time.  An operation reads the item's state and
inserts its job in *one* transaction, and transactions are serial (database.py): of two callers at the same time one gets the
job, and the other ``JobInProgress`` or ``InvalidState``.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import trio
from sqlalchemy import Engine

from siterig.azure_emu.contracts.recovery_side import RecoverySide
from siterig.azure_emu.vault.alerts.mail_password import MailPassword
from siterig.azure_emu.vault.alerts.mail_worker import MailWorker
from siterig.azure_emu.vault.context import events, rig_clock
from siterig.azure_emu.vault.context.change_feed import ChangeFeed
from siterig.azure_emu.vault.context.vault_context import ShutDown, VaultContext, no_check
from siterig.azure_emu.vault.db.database import VaultDatabase
from siterig.azure_emu.vault.db.notifications import Notifications
from siterig.azure_emu.vault.inventory import attached_disks
from siterig.azure_emu.vault.jobs import (
    disk_tasks,
    engine,
    failback_tasks,
    failover_tasks,
    pause_tasks,
    policy_tasks,
    property_tasks,
    protection_tasks,
    vm_tasks,
)
from siterig.azure_emu.vault.jobs.job_starter import JobStarter
from siterig.azure_emu.vault.keys.data_key_store import DataKeyStore
from siterig.azure_emu.vault.model.resync_window import ResyncWindow
from siterig.azure_emu.vault.monitoring.repairs import Repairs
from siterig.azure_emu.vault.monitoring.source_watch import SourceWatch
from siterig.azure_emu.vault.monitoring.standstill import StandstillWatch
from siterig.azure_emu.vault.mounts.leases import Leases
from siterig.azure_emu.vault.operations.alerts import AlertOperations
from siterig.azure_emu.vault.operations.app_scripts import AppScriptOperations
from siterig.azure_emu.vault.operations.bandwidth import BandwidthOperations
from siterig.azure_emu.vault.operations.failovers import FailoverOperations
from siterig.azure_emu.vault.operations.fences import FenceOperations
from siterig.azure_emu.vault.operations.health_errors import HealthOperations
from siterig.azure_emu.vault.operations.jobs import JobOperations
from siterig.azure_emu.vault.operations.keys import KeyOperations
from siterig.azure_emu.vault.operations.mounts import MountOperations
from siterig.azure_emu.vault.operations.observation import ObservationOperations
from siterig.azure_emu.vault.operations.points import PointOperations
from siterig.azure_emu.vault.operations.protection import ProtectionOperations
from siterig.azure_emu.vault.operations.status import VaultStatus
from siterig.azure_emu.vault.operations.verifications import VerificationOperations
from siterig.azure_emu.vault.operations.vms import VmOperations
from siterig.azure_emu.vault.report_handlers import ReportHandlers
from siterig.azure_emu.vault.workers.part_news import PartNews
from siterig.azure_emu.vault.workers.resync_worker import ResyncWorker
from siterig.azure_emu.vault.workers.retention_worker import RetentionWorker
from siterig.blockfs.contracts.control import DiskHostControl
from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.core.waits import Waits
from siterig.blockfs.sides.provider import Provider

SCENARIOS = (
    protection_tasks.ENABLE,
    protection_tasks.FINALIZE,
    protection_tasks.REPROTECT,
    protection_tasks.REPAIR,
    protection_tasks.DISABLE,
    policy_tasks.MODIFY,
    property_tasks.UPDATE,
    disk_tasks.REMOVE,
    disk_tasks.ADD,
    pause_tasks.PAUSE,
    pause_tasks.RESUME,
    failover_tasks.TEST,
    failover_tasks.CLEANUP,
    failover_tasks.UNPLANNED,
    failover_tasks.PLANNED,
    failover_tasks.COMMIT,
    failback_tasks.FAILBACK,
    failback_tasks.COMMIT,
    vm_tasks.DELETE,
    vm_tasks.RENAME,
)
"""All job types."""


class Vault:
    """One vault: its operations by noun, the handlers of reports to it, and its background tasks.

    Attributes:
        vms: the operations on virtual machines.
        protection: the operations that begin, end and repair replication.
        verifications: the comparisons of both sides of a VM.
        recovery_points: the operations on recovery points.
        mounts: the operations on mounted points and copies.
        failovers: the failovers and failbacks.
        status: the questions about protected items, jobs and events.
        observation: everything about one protected VM, and the wait for changes.
        bandwidth: the operations on the bandwidth limit of the site.
        fences: the operations on the fences of source VMs.
        app_scripts: the operations on the scripts for application-consistent points.
        health: the operations on the health of protected items.
        jobs: the operations on jobs.
        keys: the operations on the vault's key.
        alerts: the operations on the alert settings.
        data_keys: the keys of the data, for the roles that encrypt and decrypt them.
        reports: the handlers of the reports of the other roles.
    """

    def __init__(
        self,
        url: str | Engine,
        *,
        keys: Path,
        mail_password: Path | None = None,
        provider: Provider,
        recovery: RecoverySide,
        azure_host: DiskHostControl,
        shut_down: ShutDown,
        check_shut_down: ShutDown | None = None,
        clock: Clock = SYSTEM_CLOCK,
        waits: Waits | None = None,
        resync_window: ResyncWindow | None = None,
    ) -> None:
        """Open the vault's database, or make a new one.

        Args:
            url: the database, as SQLAlchemy writes it; or its engine.
            keys: the file of the vault's key-encryption keys; a new vault makes it.
            mail_password: the file of the password for the mail server; None: in the folder of the keys.
            provider: the provider on the Hyper-V host.
            recovery: the applier with its managed disks.
            azure_host: the disk host of the recovery side.
            shut_down: unmounts and detaches everything that uses these disk files of this host.
            check_shut_down: raises the error that ``shut_down`` would raise, and changes nothing.
            clock: the clock of all times and sleeps.
            waits: the register of the role's waits.
            resync_window: the hours in which a resync that is due begins by itself; None: never.
        Raises:
            RigError: ``StateVersion``, ``StateUnreadable``, ``KeysUnreadable``.
        """
        database = VaultDatabase(url)
        try:
            self.data_keys = DataKeyStore(database, keys, clock)
        except BaseException:
            database.close()
            raise
        changes = ChangeFeed(clock)
        database.observers.append(lambda _moments: changes.note())
        context = VaultContext(
            database,
            Notifications(database, changes.note),
            clock,
            site=provider,
            recovery=recovery,
            azure=azure_host,
            shut_down=shut_down,
            waits=waits or Waits(clock),
            check_shut_down=check_shut_down or no_check,
        )
        self.context = context
        self._repairs = Repairs(context)
        self._part_news = PartNews(recovery, database)
        self.reports = ReportHandlers(context, self._repairs, self._part_news)
        self._engine = engine.JobEngine(context, SCENARIOS)
        self.retention = RetentionWorker(context)
        self.sources = SourceWatch(context)
        self._leases = Leases(context)
        self.watch = StandstillWatch(context, self._repairs)
        starter = JobStarter(context, self._engine)
        self.vms = VmOperations(context, starter)
        self.resyncs = ResyncWorker(context, starter, resync_window)
        database.observers.append(self.resyncs.note)
        self.protection = ProtectionOperations(context, starter)
        self.verifications = VerificationOperations(context)
        self.recovery_points = PointOperations(context)
        self.mounts = MountOperations(context, self._leases)
        self.failovers = FailoverOperations(context, starter)
        self.status = VaultStatus(context, self._engine, self.sources)
        self.observation = ObservationOperations(context, self.status, changes, keys.parent)
        self.bandwidth = BandwidthOperations(context)
        self.fences = FenceOperations(context)
        self.app_scripts = AppScriptOperations(context)
        self.health = HealthOperations(context, self.sources)
        password = MailPassword(mail_password or keys.with_name("mail.password"))
        self.mail = MailWorker(context, password)
        database.observers.append(self.mail.note)
        self.alerts = AlertOperations(context, password, self.mail)
        self.jobs = JobOperations(context, self._engine)
        self.keys = KeyOperations(context, self.data_keys)

    @property
    def operations(self) -> tuple[object, ...]:
        """The objects that implement ``VaultApi`` together."""
        return (
            self.vms,
            self.protection,
            self.verifications,
            self.recovery_points,
            self.mounts,
            self.failovers,
            self.status,
            self.bandwidth,
            self.fences,
            self.app_scripts,
            self.health,
            self.jobs,
            self.keys,
        )

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Recover the jobs that a kill interrupted, then run jobs until cancelled; operations need its start."""
        with suppress(RigError):  # the host's disk is full: the clock is stored later, when there is room
            await self.context.database.transact(lambda session: rig_clock.advance(session, self.context.clock))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._leases.run)
            nursery.start_soon(self._repairs.run)
            nursery.start_soon(self._part_news.run)
            await self._engine.run(task_status)

    async def record_server_event(self, code: str, severity: events.Severity, affected: str, text: str) -> None:
        """Record an event about a server: a host, the storage account, or the vault itself."""
        now_ns = self.context.clock.wall_ns()
        await self.context.database.transact(
            lambda session: events.record(
                session, vm=affected, code=code, kind="ServerHealth", severity=severity, text=text, now_ns=now_ns
            )
        )

    async def watch_standstill(self) -> None:
        """Watch for waits, roles and data that stand still, until cancelled."""
        await self.watch.run()

    async def send_mail(self) -> None:
        """Send mail about alerts, until cancelled."""
        await self.mail.run()

    async def run_policies(self) -> None:
        """Prune points, begin resyncs that are due, and watch the disks of source VMs, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.sources.run)
            nursery.start_soon(attached_disks.record_at_start, self.context)
            nursery.start_soon(self.resyncs.run)
            await self.retention.run()

    def close(self) -> None:
        """Close the database; call it after :meth:`run` has ended."""
        self.context.database.close()
