"""A rule of the layer ``disk``, and the disks on which it is in force."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from siterig.blockfs.contracts.fault_effects import DiskFault, FaultCounter
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_faults import DiskFaults, RulesChange
from siterig.blockfs.host.disk_host import DiskHost
from siterig.core.fault_contract import FaultCount, FaultPlan
from siterig.faults.disk_mapping import MappedFault
from siterig.scenarios.faults.atlas import FaultAtlas
from siterig.scenarios.faults.rules import FaultRule


@dataclass(frozen=True, slots=True)
class OpenDisk:
    """An open disk that can meet faults.

    Attributes:
        vm: the name of its VM, which ``where.vm`` matches.
        name: its name, which ``where.disk`` matches.
        faults: its fault rules.
        path: the file through which its guest uses it.
        title: the name for people; empty for ``VM/NAME``.
    """

    vm: str
    name: str
    faults: DiskFaults
    path: Path
    title: str = ""

    def __str__(self) -> str:
        return self.title or f"{self.vm}/{self.name}"


def disks_of_host(host: DiskHost) -> list[OpenDisk]:
    """Return the disks of all VMs of a disk host."""
    return [disk_below(host.mountpoint, disk) for disk in host.registry.all_disks()]


def disk_below(mountpoint: Path, disk: Disk) -> OpenDisk:
    """Return a disk of the disk host with this mount."""
    vm, name = disk.paths.vm, disk.paths.name
    return OpenDisk(vm, name, disk.faults, mountpoint / vm / f"{name}.img")


@dataclass(eq=False, slots=True)
class ArmedDiskRule:
    """A rule, its counts, and its ids on the disks.

    Attributes:
        plan: the rule as it was armed.
        rule: the rule.
        mapped: the rule for the C core.
        is_open: its window is open.
        has_file: the file of ``while_file`` exists; True without one.
        counter: the counts of all disks, which continue those of former processes.
        ids: the disks on which it is in force, with its id there.
        crash_ids: the disks that lost their power by it, with the id of the rule that fails all their operations.
        titles: names of its disks for people.
        watch_scope: the watch of the file of ``while_file``; cancelled when the rule is removed.
        acted_ns: wall time at which an immediate rule acted; None: not yet.
        ranges: start and length of the bytes that the rule is for, on each disk; for rules whose ``where`` does not say it.
        spared: the disks that the rule may not damage now, because no other copy of their blocks is known.
        file_problem: the reason why no disk has this file; empty if one has it, or the rule names none.
        lost_upto: the number of the last fault of the rule for which the power was lost.
    """

    plan: FaultPlan
    rule: FaultRule
    mapped: MappedFault
    is_open: bool
    has_file: bool = True
    counter: FaultCounter = field(init=False)
    ids: dict[DiskFaults, int] = field(default_factory=dict)
    crash_ids: dict[DiskFaults, int] = field(default_factory=dict)
    titles: dict[DiskFaults, str] = field(default_factory=dict)
    ranges: dict[DiskFaults, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    spared: set[DiskFaults] = field(default_factory=set)
    watch_scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    acted_ns: int | None = None
    file_problem: str = ""
    lost_upto: int = 0

    def __post_init__(self) -> None:
        self.counter = FaultCounter(self.plan.matched_before, self.plan.fired_before)
        self.lost_upto = self.plan.fired_before

    @property
    def name(self) -> str:
        """The label of the rule."""
        return self.plan.name

    @property
    def while_file(self) -> Path | None:
        """The file that must exist; None if the rule names none."""
        name = self.rule.when.while_file
        return None if name is None else Path(name)

    @property
    def is_on(self) -> bool:
        """The rule counts and acts now."""
        return self.is_open and self.has_file

    @property
    def has_acted(self) -> bool:
        """An immediate rule has had its one fault."""
        return self.acted_ns is not None

    @property
    def holds(self) -> bool:
        """Operations that meet the fault wait until :meth:`release`."""
        return self.mapped.fault is not None and self.mapped.fault.holds != "never"

    def release(self, fired: int) -> None:
        """Let the operations continue that are held, up to the fault with this number."""
        if self.holds:
            for disk, rule in self.ids.items():
                if disk.core.is_open:
                    disk.release(rule, fired)

    def matches(self, disk: OpenDisk) -> bool:
        """Return True if the disk is at the place of the rule."""
        where = self.rule.where
        return fnmatch.fnmatchcase(disk.vm, where.vm or "*") and fnmatch.fnmatchcase(disk.name, where.disk or "*")

    def has_ranges_on(self, disk: DiskFaults) -> bool:
        """Return True unless nothing of this disk belongs to the rule: not the file that it names, and no region."""
        return disk in self.ranges or (self.rule.where.file is None and not self.rule.spares_last_copies)

    def is_on_for(self, disk: DiskFaults) -> bool:
        """Return True if the rule counts and acts on this disk now."""
        return self.is_on and disk not in self.spared

    def find_regions(self, disk: OpenDisk) -> None:
        """Limit a rule with ``recoverable = true`` to regions of a disk in which the disk of the site may be damaged."""
        if not self.rule.spares_last_copies or self.plan.atlas_seed is None or not disk.faults.core.is_open:
            return
        where, atlas, name = self.rule.where, FaultAtlas(self.plan.atlas_seed), f"{disk.vm}/{disk.name}"
        size = disk.faults.core.size_bytes
        start = where.start or 0
        whole = ((start, max(0, size - start) if where.length is None else min(where.length, max(0, size - start))),)
        given = self.ranges.pop(disk.faults, ()) if where.file is not None else whole
        found = [part for begin, length in given for part in atlas.within("site", name, begin, length)]
        if found:
            self.ranges[disk.faults] = tuple(found)

    def place(self) -> str:
        """Return the names that ``where`` has, as text for people."""
        where = self.rule.where
        return ", ".join(f"where.{key}: {value!r}" for key in ("vm", "disk") if (value := getattr(where, key)) is not None)

    def fault_of(self, disk: DiskFaults) -> DiskFault | None:
        """Return the fault of one disk; None if there is none: the rule only acts when its window opens."""
        if self.mapped.fault is None:
            return None
        ranges = self.ranges.get(disk, ())
        return replace(self.mapped.fault, counter=self.counter, enabled=self.is_on_for(disk), ranges=ranges)

    def targets(self) -> list[str]:
        """Return the disks that the rule matches now, as text for people."""
        return sorted(title for disk, title in self.titles.items() if disk.core.is_open)

    def count(self) -> FaultCount:
        """Return the counts of this process."""
        matched, fired, last_ns = self.counter.read()
        matched, fired = matched - self.plan.matched_before, fired - self.plan.fired_before
        if self.mapped.is_immediate:
            matched = fired = int(self.has_acted)
            last_ns = self.acted_ns
        waiting = 0
        for disk, rule in self.ids.items():
            if disk.core.is_open and rule in disk.rules():
                waiting += disk.counts(rule).waiting
        return FaultCount(matched=matched, fired=fired, last_ns=last_ns, waiting=waiting)


@dataclass(slots=True)
class DiskChanges:
    """Changes of the rules of several disks, which come into force together."""

    attach: dict[DiskFaults, list[tuple[ArmedDiskRule, DiskFault]]] = field(default_factory=dict)
    detach: dict[DiskFaults, list[int]] = field(default_factory=dict)
    enable: dict[DiskFaults, list[int]] = field(default_factory=dict)
    disable: dict[DiskFaults, list[int]] = field(default_factory=dict)
    hold: dict[DiskFaults, list[int]] = field(default_factory=dict)

    def disks(self) -> list[DiskFaults]:
        """Return the disks that change."""
        parts = (self.attach, self.detach, self.enable, self.disable, self.hold)
        return list({disk: None for part in parts for disk in part})

    def changes(self) -> list[RulesChange]:
        """Return the changes of the disks that are open."""
        return [
            RulesChange(
                disk,
                attach=[fault for _, fault in self.attach.get(disk, ())],
                detach=_there(disk, self.detach),
                enable=_there(disk, self.enable),
                disable=_there(disk, self.disable),
                hold=_there(disk, self.hold),
            )
            for disk in self.disks()
            if disk.core.is_open
        ]


def _there(disk: DiskFaults, of: dict[DiskFaults, list[int]]) -> Sequence[int]:
    known = disk.rules()
    return [rule for rule in of.get(disk, ()) if rule in known]
