"""The lines that ``siterig status VM`` shows: everything about one protected VM."""

from __future__ import annotations

from siterig.azure_emu.vault.model.resources import ProtectedItem, RecoveryPoint
from siterig.azure_emu.vault.model.vm_status import DiskReplication, PointSummary, VmStatus
from siterig.blockfs.core.progress import VmProgress
from siterig.cli import output
from siterig.cli.tables import Line, style_of
from siterig.core.parsing import format_size

UNKNOWN = "-"


def lines_of(status: VmStatus) -> list[Line]:
    """Return what is known about the VM: its state, then lag, points, data, disks, VMs, problems and events."""
    item = status.item
    lines: list[Line] = [
        [f"{item.name}: {item.protectionState}, health ", (item.replicationHealth, style_of(item.replicationHealth))],
    ]
    for name, text in [
        ("replication", _replication(item)),
        ("lag", _lag(item)),
        ("cycles", _cycles(item, status.progress)),
        ("points", _points(status.points)),
        ("excluded", f"disks {', '.join(item.excluded_disks)}: not replicated" if item.excluded_disks else ""),
        ("backlog", _backlog(status.disks)),
        ("log space", _space(status.disks, "unsent_log_bytes", "log_bytes_max")),
        ("snapshots", _space(status.disks, "snapshot_bytes", "snapshot_bytes_max")),
        ("uploads", _uploads(status.progress)),
        ("source", _source(status.disks)),
        (
            "free space",
            f"{_size(status.site_free_bytes)} at the site, {_size(status.recovery_free_bytes)} for managed disks",
        ),
        ("copy", "" if status.progress is None else copy_text(status.progress)),
        ("job", "" if status.job is None else f"{status.job.friendlyName}: {status.job.state} since {status.job.startTime}"),
    ]:
        if text:
            lines += output.detail(name, text)
    columns = ("disk", "size", "lag", "log", "dirty", "unapplied", "account", "managed", "earlier states", "open")
    lines += ["", *output.table(columns, [_disk_row(disk) for disk in status.disks])]
    if status.recovery_vms:
        made = [(vm.vm, vm.kind, _seconds(vm.age_s)) for vm in status.recovery_vms]
        lines += ["", *output.table(("VM", "kind", "age"), made)]
    if problems := problems_of(status):
        lines.append("")
        for name, text in problems:
            lines += output.detail(name, text)
    if status.events:
        rows = [(event.timeOfOccurrence, event.severity, event.eventCode, event.description) for event in status.events]
        lines += ["", *output.table(("time", "severity", "code", "event"), rows)]
    return lines


def problems_of(status: VmStatus) -> list[tuple[str, str]]:
    """Return the problems as pairs of a name and a text."""
    item = status.item
    found = [(error.errorCode, error.summaryMessage) for error in item.healthErrors]
    found += [(f"{error.errorCode} (acknowledged)", error.summaryMessage) for error in item.acknowledged_errors]
    return found + [(f"role {each.role}", f"{each.reason}; its values are missing") for each in status.unanswered]


def copy_text(progress: VmProgress) -> str:
    """Return the progress of a copy in words; empty if none runs."""
    if progress.phase is None or not progress.disks:
        return ""
    done, total = (sum(getattr(disk, key) for disk in progress.disks) for key in ("done_bytes", "total_bytes"))
    sent = sum(disk.sent_bytes for disk in progress.disks)
    share = f"{done / total:.0%}" if total else "100%"
    text = f"{progress.phase} {share}, {format_size(done)} of {format_size(total)}, {format_size(sent)} sent"
    text += "" if progress.left_s is None else f", {_seconds(progress.left_s)} left"
    return text + (f"; {progress.detail}" if progress.detail else "")


def _replication(item: ProtectedItem) -> str:
    text = f"{item.replication_state}, active location {item.activeLocation}"
    text += "" if item.testFailoverState == "None" else f", test failover {item.testFailoverState}"
    return text + ("" if item.resynchronizationRequired is None else f", resync required: {item.resynchronizationRequired}")


def _lag(item: ProtectedItem) -> str:
    if item.lastRpoInSeconds is None:
        return "no state of the VM is at the recovery side yet"
    sent, applied = _seconds(item.lastRpoInSeconds), _seconds(item.applied_lag_s)
    text = f"RPO {sent} (age of the newest state in the account)"
    return text + ("" if item.applied_lag_s is None else f"; the applied state is {applied} older")


def _cycles(item: ProtectedItem, progress: VmProgress | None) -> str:
    text = f"every {item.policy_interval_s:g} s"
    if progress is not None and progress.last_cycle_s is not None:
        text += f", last {_seconds(progress.last_cycle_s)} ago"
    if progress is not None and progress.next_cycle_s is not None:
        text += f", next in {_seconds(progress.next_cycle_s)}" if progress.next_cycle_s > 0 else ", one is due or runs"
    return text


def _points(points: PointSummary) -> str:
    def named(point: RecoveryPoint | None, age_s: float | None) -> str:
        return "none" if point is None else f"{point.id} ({_seconds(age_s)} old)"

    text = f"{points.count} usable, newest {named(points.newest, points.newest_age_s)}"
    app = named(points.newest_app_consistent, points.newest_app_consistent_age_s)
    return text + f", newest application-consistent {app}"


def _backlog(disks: list[DiskReplication]) -> str:
    log, unapplied = _total(disks, "unsent_log_bytes"), _total(disks, "unapplied_bytes")
    return (
        f"log {log} at the site; {unapplied} unapplied in the account, which has {_total(disks, 'account_bytes')} of the VM"
    )


def _space(disks: list[DiskReplication], used: str, limit: str) -> str:
    """Return the space that each disk with a limit uses at the site, and the limit."""
    bounded = [(disk.name, getattr(disk, used), getattr(disk, limit)) for disk in disks]
    return ", ".join(
        f"{name} {_size(now)} of at most {format_size(most)}" for name, now, most in bounded if most is not None
    )


def _uploads(progress: VmProgress | None) -> str:
    if progress is None or progress.upload_bytes_s is None:
        return ""
    return f"{format_size(int(progress.upload_bytes_s))}/s in the last minute"


def _source(disks: list[DiskReplication]) -> str:
    if all(disk.open_handles is None for disk in disks):
        return ""
    used = [f"{disk.name} (open handles: {disk.open_handles})" for disk in disks if disk.open_handles]
    return f"in use: {', '.join(used)}" if used else "not in use"


def _disk_row(disk: DiskReplication) -> tuple[str, ...]:
    sizes = (disk.unsent_log_bytes, disk.dirty_bytes, disk.unapplied_bytes, disk.account_bytes)
    stored = (disk.base_bytes, disk.journal_bytes)
    handles = UNKNOWN if disk.open_handles is None else str(disk.open_handles)
    head = (disk.name, format_size(disk.size_bytes), _seconds(disk.applied_lag_s))
    return (*head, *map(_size, (*sizes, *stored)), handles)


def _total(disks: list[DiskReplication], key: str) -> str:
    values = [getattr(disk, key) for disk in disks]
    return UNKNOWN if None in values else format_size(sum(values))


def _size(value: int | None) -> str:
    return UNKNOWN if value is None else format_size(value)


def _seconds(value: float | None) -> str:
    return UNKNOWN if value is None else output.duration(int(value))
