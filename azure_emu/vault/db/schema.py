"""The vault's database: these comments are the reference for every column.

Fault contract.  The process can be killed between any two statements, and the machine can lose power: the changes of a
committed transaction are kept (SQLite: WAL, synchronous=FULL), those of an uncommitted one are lost.  Each transition of an
item, with its job, task, points and event, is one transaction, so no half-made state is ever visible.  Times are nanoseconds
since the epoch, UTC, by the injected wall clock unless a column says otherwise; they are only shown.  Decisions use
``elapsed_ns``: nanoseconds by the rig's clock (rig_clock.py).  Positions are the site host's
(siterig.blockfs.contracts.control); 0 means "none yet".
"""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

FORMAT_VERSION = 15
"""Raised whenever a table changes in a release.  A database of an older version is migrated (migrations/)."""


class Base(DeclarativeBase):
    """Base of all tables."""


class FormatRow(Base):
    """Exactly one row.  Alembic's own table ``alembic_version`` has the same number as text."""

    __tablename__ = "format"

    version: Mapped[int] = mapped_column(Integer, primary_key=True)  # FORMAT_VERSION of the program that made or migrated it


class RigClockRow(Base):
    """The rig's clock at the last reading of the host's clocks (rig_clock.py); at most one row."""

    __tablename__ = "rig_clock"
    ONLY: ClassVar[int] = 1

    id: Mapped[int] = mapped_column(Integer, primary_key=True)  # ONLY
    elapsed_ns: Mapped[int] = mapped_column(BigInteger)  # elapsed time that counts, since the vault was made; never falls
    boot_id: Mapped[str] = mapped_column(String)  # the kernel's boot in which the clocks were read
    boottime_ns: Mapped[int] = mapped_column(BigInteger)  # CLOCK_BOOTTIME then
    wall_ns: Mapped[int] = mapped_column(BigInteger)  # the wall clock then


class ItemRow(Base):
    """A replication protected item.  It exists from enable_protection until disable_protection has succeeded."""

    __tablename__ = "item"

    vm: Mapped[str] = mapped_column(String, primary_key=True)  # the source VM's name; the recovered VM's as well
    interval_s: Mapped[float] = mapped_column(Float)  # policy: seconds between delta cycles, 1 to 86400
    app_consistent_every_s: Mapped[float | None] = mapped_column(Float)  # policy; None: only on demand
    history_hours: Mapped[int] = mapped_column(Integer)  # policy: recoveryPointHistoryDuration, see retention.py
    protection_state: Mapped[str] = mapped_column(String)  # a name of states.py; a passing state implies a job that is open
    test_failover_state: Mapped[str] = mapped_column(String)  # states.TEST_*; "None" (the text) when there is no test VM
    active_location: Mapped[str] = mapped_column(String)  # Primary | Recovery; changes at commit only
    suspended: Mapped[bool] = mapped_column(Boolean)
    # suspended: true from a failover until reprotect or resync; the agent must not replicate while it is true.  Set
    # *before* the call to the site: a lost site asks when it comes back (may_replicate).
    recovery_vm_name: Mapped[str | None] = mapped_column(String)  # of the VM that a failover makes; None: as the source VM
    test_vm_name: Mapped[str | None] = mapped_column(String)  # of the VM of a test failover; None: the former, and -test
    paused_ns: Mapped[int | None] = mapped_column(BigInteger)  # when a user paused replication; None: it is not paused
    fenced_ns: Mapped[int | None] = mapped_column(BigInteger)  # when a user fenced its disks at the site; None: they are not
    resync_reason: Mapped[str | None] = mapped_column(String)  # why a resync is needed; None: it is not
    resync_marks: Mapped[int] = mapped_column(Integer)
    # resync_marks: how often resync_reason was set.  A resync clears the reason only if this did not grow meanwhile.
    sent_position: Mapped[int] = mapped_column(BigInteger)  # newest position that is in the cache with its tag; 0: none
    sent_time_ns: Mapped[int | None] = mapped_column(BigInteger)  # that tag's time by the *site's* clock; None: none yet
    sent_elapsed_ns: Mapped[int | None] = mapped_column(BigInteger)  # the rig's clock at that tag; None: none yet.  RPO
    points_after_position: Mapped[int] = mapped_column(BigInteger)
    # points_after_position: tags up to it make no point: they belong to a protection that a commit ended; 0 before that
    failover_position: Mapped[int | None] = mapped_column(BigInteger)
    # failover_position: the position that the VM was failed over at, until it is back at the site; None: it is there.  Data
    # that is written at the site after it is lost by a failback
    protected_since_elapsed_ns: Mapped[int | None] = mapped_column(BigInteger)
    # protected_since_elapsed_ns: the rig's clock when delta cycles were last (re)started; None before.  Missed cycles count
    # from here.

    excluded_disks: Mapped[list[str]] = mapped_column(JSON, default=list)  # names of the disks that are not replicated
    new_disks: Mapped[list[str]] = mapped_column(JSON, default=list)
    # new_disks: those of them that were attached to the protected VM, and that no user has protected or excluded

    disks: Mapped[list[DiskRow]] = relationship(
        cascade="all, delete-orphan",
        order_by="DiskRow.name",
        primaryjoin=("and_(ItemRow.vm == DiskRow.vm, DiskRow.first_position.is_not(None), DiskRow.last_position.is_(None))"),
    )
    # disks: those that the site replicates
    removed_disks: Mapped[list[DiskRow]] = relationship(
        viewonly=True,
        order_by="DiskRow.name",
        primaryjoin="and_(ItemRow.vm == DiskRow.vm, DiskRow.last_position.is_not(None))",
    )
    # removed_disks: those that are not replicated any more; older points still have them
    known_disks: Mapped[list[DiskRow]] = relationship(viewonly=True, order_by="DiskRow.name")
    # known_disks: all disks with a managed disk, also removed ones, and those that are copied to join the replication
    points: Mapped[list[PointRow]] = relationship(cascade="all, delete-orphan", order_by="PointRow.position.desc()")
    cycles: Mapped[list[CycleRow]] = relationship(cascade="all, delete-orphan")
    health_errors: Mapped[list[HealthErrorRow]] = relationship(cascade="all, delete-orphan", order_by="HealthErrorRow.id")


class DiskRow(Base):
    """A disk of an item with a managed disk of the same id, and the watermark last reported for it."""

    __tablename__ = "disk"

    disk_id: Mapped[str] = mapped_column(String, primary_key=True)  # UUID: the site disk's and the managed disk's
    vm: Mapped[str] = mapped_column(ForeignKey("item.vm", ondelete="CASCADE"), index=True)  # the item's vm
    name: Mapped[str] = mapped_column(String)  # unique within the VM
    size_bytes: Mapped[int] = mapped_column(BigInteger)  # bytes; a multiple of 512
    generation: Mapped[int] = mapped_column(Integer)  # 0: nothing applied yet; never falls
    sync_parts: Mapped[int] = mapped_column(Integer)  # parts of this generation's sync that are applied
    sync_complete: Mapped[bool] = mapped_column(Boolean)  # the sync-end tag of this generation was applied
    log_seq: Mapped[int] = mapped_column(BigInteger)  # last sequence number applied; 0: none
    complete_position: Mapped[int] = mapped_column(BigInteger)  # all records up to it are applied; 0: none
    complete_time_ns: Mapped[int] = mapped_column(BigInteger)  # time of that record by the site's clock; 0: none
    sector_bytes: Mapped[int] = mapped_column(Integer, default=512)  # 512 or 4096: the sector size that the disk declares
    first_position: Mapped[int | None] = mapped_column(BigInteger)
    # first_position: states from it on have the disk, earlier ones lack it.  None: it is copied to join the replication
    former_ranges: Mapped[list[list[int]]] = mapped_column(JSON, default=list)
    # former_ranges: first and last position of the states that have it from before it was removed and joined again
    last_position: Mapped[int | None] = mapped_column(BigInteger)
    # last_position: the disk was removed from replication: states up to this position have it, later ones lack it.  None: it
    # is replicated


class DamageRow(Base):
    """Known damage of a managed disk; a row is deleted when a scrub does not find the damage any more, or with the disk."""

    __tablename__ = "damage"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)  # order of insertion
    disk_id: Mapped[str] = mapped_column(ForeignKey("disk.disk_id", ondelete="CASCADE"), index=True)  # the managed disk
    first_position: Mapped[int | None] = mapped_column(BigInteger)  # the first damaged position; None: all are readable
    last_position: Mapped[int | None] = mapped_column(BigInteger)  # the last damaged position; None: all later ones, too
    by_read: Mapped[bool] = mapped_column(Boolean)  # found by a read of this position; others are not known
    places: Mapped[int] = mapped_column(Integer)  # number of damaged places that affect these positions
    example: Mapped[str] = mapped_column(Text)  # one of them: file, byte, description


class PointRow(Base):
    """A tag that becomes a recovery point, and then that point."""

    __tablename__ = "point"

    tag_id: Mapped[str] = mapped_column(String, primary_key=True)  # the recovery point's id
    vm: Mapped[str] = mapped_column(ForeignKey("item.vm", ondelete="CASCADE"))  # the item's vm
    kind: Mapped[str] = mapped_column(String)  # CrashConsistent | ApplicationConsistent
    name: Mapped[str] = mapped_column(String)  # what the user or the cycle called it; not unique
    position: Mapped[int] = mapped_column(BigInteger)  # one position over all disks of the VM
    time_ns: Mapped[int] = mapped_column(BigInteger)  # by the site's clock
    elapsed_ns: Mapped[int] = mapped_column(BigInteger)
    # elapsed_ns: the rig's clock at the tag; never falls from a point to the next.  Negative: from before there was one
    downgraded_because: Mapped[str | None] = mapped_column(Text)
    # downgraded_because: why it is crash-consistent though more was asked for; None: it is as asked, or the agent was
    # killed before it could report it.  The tag does not have it.
    available: Mapped[bool] = mapped_column(Boolean)  # the tag was applied in every disk of the item; never goes back
    pinned: Mapped[bool] = mapped_column(Boolean, default=False)  # a user pinned it: retention keeps it
    lacking_disks: Mapped[list[str] | None] = mapped_column(JSON)
    # lacking_disks: names of the disks of the VM that it lacks, since it is available; None: it lacks none

    seen: Mapped[list[TagSeenRow]] = relationship(cascade="all, delete-orphan")

    # Newest first, the first few, or the newest of a kind: all from the index, however many points there are.
    __table_args__ = (
        Index("point_newest", "vm", "available", "position"),
        Index("point_kind", "vm", "available", "kind", "position"),
        Index("point_pinned", "vm", "pinned"),
    )


class TagSeenRow(Base):
    """The tag of a point was applied in this disk.  Rows go with their point."""

    __tablename__ = "tag_seen"

    tag_id: Mapped[str] = mapped_column(ForeignKey("point.tag_id", ondelete="CASCADE"), primary_key=True)
    # tag_id: the point that the tag is for
    disk_id: Mapped[str] = mapped_column(String, primary_key=True)  # the disk in which the tag was applied


class CycleRow(Base):
    """A delta cycle that reached the cache account.  Rows older than health.WINDOW_S are pruned."""

    __tablename__ = "cycle"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)  # order of insertion
    vm: Mapped[str] = mapped_column(ForeignKey("item.vm", ondelete="CASCADE"), index=True)  # the item's vm
    elapsed_ns: Mapped[int] = mapped_column(BigInteger)  # the rig's clock when it was reported to the vault


class HealthErrorRow(Base):
    """A reason why an item is unhealthy now.  At most one row for each (vm, source)."""

    __tablename__ = "health_error"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)  # order of insertion
    vm: Mapped[str] = mapped_column(ForeignKey("item.vm", ondelete="CASCADE"), index=True)  # the item's vm
    source: Mapped[str] = mapped_column(String)
    # source: "replication" (the agent), "apply:DISK_ID" (the applier), "vm-disk:VM/DISK" (a disk of a VM on the
    # recovery side) or "watch:KEY" (what stands still, standstill.py)
    code: Mapped[str] = mapped_column(String)  # RigError code
    message: Mapped[str] = mapped_column(Text)  # what a user reads
    recoverable: Mapped[bool] = mapped_column(Boolean)  # false: the item is Critical
    attempt: Mapped[int] = mapped_column(Integer)  # 1: the first failure in a row
    next_try_ns: Mapped[int | None] = mapped_column(BigInteger)  # None: not tried again by itself


class AcknowledgedRow(Base):
    """A reason for bad health that a user acknowledged; the row is deleted when the reason ends."""

    __tablename__ = "acknowledged"

    vm: Mapped[str] = mapped_column(ForeignKey("item.vm", ondelete="CASCADE"), primary_key=True)  # the item's vm
    error_id: Mapped[str] = mapped_column(String, primary_key=True)  # api.HealthError.errorId
    code: Mapped[str] = mapped_column(String, primary_key=True)  # its errorCode
    recoverable: Mapped[bool] = mapped_column(Boolean, primary_key=True)  # false: the reason was critical
    at_ns: Mapped[int] = mapped_column(BigInteger)  # when it was acknowledged


class JobRow(Base):
    """A job.  Jobs outlive their item.  At most one job of a VM has no ``end_ns`` (kept by jobs.enqueue)."""

    __tablename__ = "job"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)  # order of creation
    name: Mapped[str] = mapped_column(String, unique=True)  # UUID
    vm: Mapped[str] = mapped_column(String, index=True)  # the VM it is about; its item may be gone
    key: Mapped[str] = mapped_column(String)  # jobs.Scenario.key: two scenarios may share a scenarioName
    scenario: Mapped[str] = mapped_column(String)  # scenarioName
    friendly_name: Mapped[str] = mapped_column(String)  # what a portal shows
    state: Mapped[str] = mapped_column(String)  # api.JobState; InProgress from creation, for it is started at once
    state_description: Mapped[str | None] = mapped_column(String)  # Completed, CompletedWithInformation; None while it runs
    start_ns: Mapped[int] = mapped_column(BigInteger)  # when it was created
    end_ns: Mapped[int | None] = mapped_column(BigInteger)  # None: open; on the next start resumed or failed
    variables: Mapped[dict[str, Any]] = mapped_column("memory", JSON)
    # variables: the job's arguments and the results of finished tasks; saved in the transaction that ends a task
    result_vm: Mapped[dict[str, Any] | None] = mapped_column(JSON)  # api.Vm that a failover made
    result_point: Mapped[dict[str, Any] | None] = mapped_column(JSON)  # api.RecoveryPoint that a failover used

    tasks: Mapped[list[TaskRow]] = relationship(cascade="all, delete-orphan", order_by="TaskRow.ordinal")
    errors: Mapped[list[JobErrorRow]] = relationship(cascade="all, delete-orphan", order_by="JobErrorRow.id")


class TaskRow(Base):
    """A task of a job.  Tasks run one after another; those after a failed one stay NotStarted."""

    __tablename__ = "task"

    job_id: Mapped[int] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), primary_key=True)  # the job it belongs to
    ordinal: Mapped[int] = mapped_column(Integer, primary_key=True)  # 0..n-1, the order of execution
    name: Mapped[str] = mapped_column(String)  # official name
    friendly_name: Mapped[str] = mapped_column(String)  # what a portal shows
    state: Mapped[str] = mapped_column(String)  # api.JobState; Other + Skipped: there was nothing to do
    state_description: Mapped[str | None] = mapped_column(String)  # as for the job; None while it runs or when it failed
    start_ns: Mapped[int | None] = mapped_column(BigInteger)  # None: not started
    end_ns: Mapped[int | None] = mapped_column(BigInteger)  # None: not ended


class JobErrorRow(Base):
    """The error with which a job failed, or the error of a failed task after which the job continued."""

    __tablename__ = "job_error"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)  # order of insertion
    job_id: Mapped[int] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), index=True)  # the job it belongs to
    code: Mapped[str] = mapped_column(String)  # RigError code
    message: Mapped[str] = mapped_column(Text)  # what a user reads


class EventRow(Base):
    """An event of the vault's log; never changed."""

    __tablename__ = "event"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)  # order of occurrence
    code: Mapped[str] = mapped_column(String)  # eventCode
    type: Mapped[str] = mapped_column(String)  # eventType: VmHealth, JobStatus, VmReplication, ServerHealth
    severity: Mapped[str] = mapped_column(String)  # OK | Warning | Critical
    at_ns: Mapped[int] = mapped_column(BigInteger)  # when it happened
    affected_object: Mapped[str] = mapped_column(String)  # the VM; rig_clock.RIG if the event concerns no single VM
    description: Mapped[str] = mapped_column(Text)  # what a user reads


class AlertSettingsRow(Base):
    """The alert settings, and the state of the mails; at most one row, and the defaults without it."""

    __tablename__ = "alert_settings"
    ONLY: ClassVar[int] = 1

    id: Mapped[int] = mapped_column(Integer, primary_key=True)  # ONLY
    settings: Mapped[dict[str, Any]] = mapped_column(JSON)  # alert_api.AlertSettings; the password is not in it
    last_event_id: Mapped[int] = mapped_column(Integer)  # events up to it are in a mail, or have none
    dropped: Mapped[int] = mapped_column(Integer)  # number of alerts without a mail, because the queue was full
    problem: Mapped[str | None] = mapped_column(Text)  # why the newest attempt failed; None: it did not
    problem_since_ns: Mapped[int | None] = mapped_column(BigInteger)  # the first failure in a row; None: no problem
    delivered_ns: Mapped[int | None] = mapped_column(BigInteger)  # the newest delivery; None: none yet


class MailRow(Base):
    """A mail about alerts: it waits, or it was delivered less than mail_queue.QUIET_S ago."""

    __tablename__ = "mail"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)  # order of creation
    message_id: Mapped[str] = mapped_column(String)  # UUID in the Message-ID, and in the name of a file
    topic: Mapped[str] = mapped_column(String)  # alert_rules.INFRASTRUCTURE, or "vm:" and the VM
    alerts: Mapped[list[dict[str, Any]]] = mapped_column(JSON)  # mail_text.Alert, the first mail_queue.LISTED_MAX
    alert_count: Mapped[int] = mapped_column(Integer)  # number of all alerts
    created_ns: Mapped[int] = mapped_column(BigInteger)  # when the first alert was added
    due_elapsed_ns: Mapped[int] = mapped_column(BigInteger)  # the rig's clock, before which it is not sent
    expires_elapsed_ns: Mapped[int] = mapped_column(BigInteger)  # the rig's clock, after which it is not tried again
    attempts: Mapped[int] = mapped_column(Integer)  # how often the server put it off
    receivers: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    # receivers: the addresses that do not have it yet; None: it is open, and gets further alerts of the topic
    sent_elapsed_ns: Mapped[int | None] = mapped_column(BigInteger)  # the rig's clock at the delivery; None: it waits


class KnownDiskRow(Base):
    """A VM's disk as last seen on a fabric; list_vms returns it while that fabric does not answer."""

    __tablename__ = "known_disk"

    fabric: Mapped[str] = mapped_column(String, primary_key=True)  # site | azure
    vm: Mapped[str] = mapped_column(String, primary_key=True)  # the VM's name on that fabric
    name: Mapped[str] = mapped_column(String, primary_key=True)  # the disk's name, unique within the VM
    size_bytes: Mapped[int] = mapped_column(BigInteger)  # bytes; a multiple of 512
    path: Mapped[str] = mapped_column(String)  # the disk's file in the fabric's mount
    sector_bytes: Mapped[int] = mapped_column(Integer, default=512)  # 512 or 4096: the sector size that the disk declares


class AzureVmRow(Base):
    """A VM on the recovery side that belongs to an item.

    The row is written before the first disk is opened and deleted after the last disk is removed.  The vault never removes a
    VM of the recovery host that has no row.
    """

    __tablename__ = "azure_vm"

    name: Mapped[str] = mapped_column(String, primary_key=True)  # as the API shows it
    owner: Mapped[str] = mapped_column(String, index=True)  # the item's vm
    kind: Mapped[str] = mapped_column(String)  # TestFailover | Recovered | Copy (the state that list_vms shows)
    point_id: Mapped[str | None] = mapped_column(String)  # the recovery point that its disks lie over; None: no named one
    position: Mapped[int | None] = mapped_column(BigInteger)  # of that state; None: an older siterig made the VM
    process_id: Mapped[int | None] = mapped_column(BigInteger)  # of a Copy: it goes with this process of the host; else None
    process_started: Mapped[int | None] = mapped_column(BigInteger)  # clock ticks from the boot to that process's start


class MountRow(Base):
    """A point, or a position between points, that is mounted read-only on the recovery side.

    The row is written before the recovery host opens the point and deleted after the host has closed it.  So no mounted
    point is ever pruned, and after a kill the point can be mounted or unmounted again.
    """

    __tablename__ = "mount"

    vm: Mapped[str] = mapped_column(ForeignKey("item.vm", ondelete="CASCADE"), primary_key=True)  # the item's vm
    name: Mapped[str] = mapped_column(String, primary_key=True)  # the folder's name below recovery/VM
    position: Mapped[int] = mapped_column(BigInteger)  # of all disks of the VM
    point_id: Mapped[str | None] = mapped_column(String)  # the recovery point at that position; None: between points
    asked_time: Mapped[str | None] = mapped_column(String)  # the time that was asked for, as given; None: no time was
    process_id: Mapped[int | None] = mapped_column(BigInteger)  # it goes with this process of the host; None: it stays
    process_started: Mapped[int | None] = mapped_column(BigInteger)  # clock ticks from the boot to that process's start


class DataKeyRow(Base):
    """A key that encrypts data of one disk; encrypted itself by a version of the vault's key (keys/key_file.py).

    The row is written before the key is given out.  It is deleted after the data that it encrypts.
    """

    __tablename__ = "data_key"

    key_id: Mapped[str] = mapped_column(String, primary_key=True)  # UUID; stands in the header of what the key encrypts
    use: Mapped[str] = mapped_column(String)  # "part": the parts of a disk's generation; "disk": its managed disk
    disk_id: Mapped[str] = mapped_column(String, index=True)  # UUID; of a download, that of the disk that is downloaded
    generation: Mapped[int] = mapped_column(BigInteger)  # of the disk's log; 1 for a download, 0 for a managed disk
    wrapped: Mapped[bytes] = mapped_column(LargeBinary)  # nonce, ciphertext and tag (AES-256-GCM)
    wrapped_by: Mapped[int] = mapped_column(Integer)  # the version of the vault's key that wrapped it

    __table_args__ = (UniqueConstraint("use", "disk_id", "generation", name="data_key_use"),)
