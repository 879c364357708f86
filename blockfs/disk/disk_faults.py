"""The fault rules of open disks: put in force, counted, waited for, and removed.

C applies them between the guest's requests and the disk, before the change log (cext/src/disk/faulty.h); both front ends
meet the same faults, and reads and writes of the program itself meet none.

Fault contract: rules are not durable and end with the process.  A disk that is closed, or replaced, ends the waits of its
requests; after a replacement its rules are in force again, and count from 0.

Threads: the trio thread, unless a method says otherwise.  The functions that change rules return when the change is in
force; they wait for running requests, so they do it in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import trio

from siterig.blockfs.changelog.disk_log import check
from siterig.blockfs.contracts.fault_effects import EFFECT_NAMES, OPERATION_NAMES, DiskFault, GuestOperation
from siterig.blockfs.core import fault_decisions as decisions
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.disk.disk_core import DiskCore
from siterig.cext._core import ffi, lib

RULES_MAX: int = lib.SR_FAULT_RULES_MAX
UNSYNCED_BYTES_MAX = 256 << 20
"""Memory for the old bytes of unsynced writes of one disk, unless a caller wants another limit."""
_READ_AT_ONCE = 256
_numbers = itertools.count(1)
_changing = threading.Lock()
"""Held while the rules of disks change."""


@dataclass(frozen=True, slots=True)
class FaultCounts:
    """A rule in force.

    Attributes:
        rule: the id of the rule; unique in the process.
        fault: the rule.
        matched: number of operations that matched.
        fired: number of operations that met the fault.
        last_ns: when it fired last, in nanoseconds since 1970; None: never.
        waiting: number of operations that it keeps waiting now.
    """

    rule: int
    fault: DiskFault
    matched: int
    fired: int
    last_ns: int | None
    waiting: int


@dataclass(frozen=True, slots=True)
class DiskInjection:
    """One fault that was injected.

    Attributes:
        rule: the id of the rule.
        sequence: number of this injection among those of the disk: 1, 2, ...
        n: number of the operation among those that match the rule, from 1.
        fired: number of the fault among those of the rule, from 1.
        position: the newest position of the host at that time.
        time_ns: nanoseconds since 1970.
        operation: the operation, with ``offset`` and ``length`` in bytes.
        effect: name of the effect.
        hidden: another rule decided the result of the operation, and this one had no effect.
        error: errno of the operation; 0: none by this rule.
        detail: depends on the effect, see ``struct sr_injection`` in cext/src/faults/rules.h.
    """

    rule: int
    sequence: int
    n: int
    fired: int
    position: int
    time_ns: int
    operation: GuestOperation
    offset: int
    length: int
    effect: str
    hidden: bool
    error: int
    detail: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class UnsyncedWrites:
    """Writes of a guest that no flush has made durable.

    Attributes:
        writes: their number.
        memory_bytes: memory that their old bytes take.
        written_back: number of writes that count as durable because the memory was full, as in a drive's cache.
    """

    writes: int
    memory_bytes: int
    written_back: int


@dataclass(frozen=True, slots=True)
class LostWrites:
    """The effect of a power loss on one disk.

    Attributes:
        writes: unsynced writes; those that overlap count as one.
        lost: those of which nothing is left.
        torn: those of which some sectors are left.
        length: number of bytes that are as they were before.
        ranges: start and length of these bytes, ascending; only the first 16 ranges.
        range_count: number of all ranges.
    """

    writes: int
    lost: int
    torn: int
    length: int
    ranges: tuple[tuple[int, int], ...] = ()
    range_count: int = 0


class DiskFaults:
    """The fault rules of one open disk."""

    def __init__(self, core: DiskCore) -> None:
        """Begin without rules."""
        self._core = core
        self._rules: dict[int, DiskFault] = {}
        self._unsynced_bytes_max = 0
        self.opening = 0
        """Changes when the disk in C is another one: injections begin at 1 again."""

    async def attach(self, fault: DiskFault) -> int:
        """Add a rule, and return its id.

        Raises:
            RigError: ``FaultNotPossible``.
        """
        (rule,), _ = await attach_all([self], fault)
        return rule

    async def detach(self, rule: int) -> None:
        """Remove a rule; operations that it keeps waiting continue.

        Raises:
            RigError: ``FaultNotFound``.
        """
        await detach_all([(self, rule)])

    async def set_enabled(self, rule: int, enabled: bool) -> None:
        """Switch a rule on or off; its counters stay, and operations that it keeps waiting continue.

        Raises:
            RigError: ``FaultNotFound``.
        """
        await set_all_enabled([(self, rule)], enabled)

    async def clear(self) -> None:
        """Remove all rules."""
        await detach_all([(self, rule) for rule in list(self._rules)])

    def list_counts(self) -> list[FaultCounts]:
        """Return the rules in force with their counters, in the order in which they were attached."""
        return [self.counts(rule) for rule in list(self._rules)]

    def counts(self, rule: int) -> FaultCounts:
        """Return one rule with its counters.

        Raises:
            RigError: ``FaultNotFound``.
        """
        fault, found = self.fault(rule), ffi.new("struct sr_fault_counts *")
        if lib.sr_disk_fault_counts(self._core.c, rule, found) != 0:
            raise self._not_found(rule)
        return FaultCounts(rule, fault, found.matched, found.fired, found.last_ns or None, found.waiting)

    def fault(self, rule: int) -> DiskFault:
        """Return the rule with this id.

        Raises:
            RigError: ``FaultNotFound``.
        """
        if (fault := self._rules.get(rule)) is None:
            raise self._not_found(rule)
        return fault

    def _not_found(self, rule: int) -> RigError:
        known = ", ".join(f"{number} ({fault.name})" for number, fault in self._rules.items())
        return RigError(
            Code.FaultNotFound, f"disk {self._core.paths}: there is no fault rule {rule}; in force: {known or 'none'}"
        )

    async def wait_fired(self, rule: int, times: int = 1) -> FaultCounts:
        """Wait until a rule has fired so often.

        Raises:
            RigError: ``FaultNotFound`` if there is no such rule, or it is removed meanwhile.
            OSError: ``EBADF`` if the disk is closed meanwhile.
        """
        while (counts := self.counts(rule)).fired < times:
            await self._wait_told(rule, times)  # also returns when the rule is removed, or the disk is closed
        return counts

    async def wait_injection(self, after: int) -> None:
        """Wait until there is an injection with a sequence number above ``after``.

        Raises:
            OSError: ``EBADF`` if the disk is closed meanwhile; ``ENOENT`` if it never had a rule.
        """
        await self._wait_told(0, after + 1)

    async def _wait_told(self, rule: int, count: int) -> None:
        event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        disk = self._core.c
        try:
            check(lib.sr_disk_tell_fired(disk, rule, count, event_fd))
            await trio.lowlevel.wait_readable(event_fd)
        finally:
            if self._core.is_open and self._core.c == disk:
                lib.sr_disk_tell_no_more(disk, event_fd)
            os.close(event_fd)

    def injections(self, after: int = 0) -> list[DiskInjection]:
        """Return the injections with a sequence number above ``after``, oldest first; only the last 4096 are kept."""
        found: list[DiskInjection] = []
        rows = ffi.new("struct sr_injection[]", _READ_AT_ONCE)
        while count := int(lib.sr_disk_injections(self._core.c, after, rows, _READ_AT_ONCE)):
            found += [_injection(rows[i]) for i in range(count)]
            after = found[-1].sequence
        return found

    def release(self, rule: int, fired: int) -> None:
        """Let the operations continue that a rule holds, up to its fault with this number."""
        lib.sr_disk_release(self._core.c, rule, fired)

    def end_waits(self) -> None:
        """Let no request wait for a rule, now and later: the mount is ending.  Any thread may call it."""
        with self._core.thread_lock:
            if self._core.is_open:
                lib.sr_disk_end_waits(self._core.c)

    # --- power loss ---------------------------------------------------------------------------------------------

    def keep_unsynced(self, bytes_max: int = UNSYNCED_BYTES_MAX) -> None:
        """Keep from now on the old bytes of all writes that no flush has made durable; 0: stop, and forget them."""
        check(lib.sr_disk_keep_unsynced(self._core.c, bytes_max))
        self._unsynced_bytes_max = bytes_max

    def unsynced(self) -> UnsyncedWrites | None:
        """Return the unsynced writes; None if their old bytes are not kept."""
        info = ffi.new("struct sr_unsynced_info *")
        lib.sr_disk_unsynced_info(self._core.c, info)
        return UnsyncedWrites(info.writes, info.bytes, info.written_back) if info.kept else None

    # --- for the functions of this module, and the disk ---------------------------------------------------------

    @property
    def core(self) -> DiskCore:
        """The disk whose rules these are."""
        return self._core

    def rules(self) -> dict[int, DiskFault]:
        """Return a copy of the rules by id."""
        return dict(self._rules)

    def note_in_force(self, rules: Mapping[int, DiskFault]) -> None:
        """Record the rules that are in force in C."""
        self._rules = dict(rules)

    def reopened(self) -> None:
        """Put the rules in force again, because the disk in C is another one."""
        self.opening += 1
        if self._unsynced_bytes_max:
            self.keep_unsynced(self._unsynced_bytes_max)
        with _changing:
            if self._rules:
                _put_in_force([self], [self._rules])


def _injection(row: Any) -> DiskInjection:
    return DiskInjection(
        rule=row.rule,
        sequence=row.sequence,
        n=row.n,
        fired=row.fired,
        position=row.position,
        time_ns=row.time_ns,
        operation=OPERATION_NAMES[row.op],
        offset=row.offset,
        length=row.bytes,
        effect=EFFECT_NAMES[row.effect],
        hidden=bool(row.hidden),
        error=row.error,
        detail=tuple(row.detail),
    )


# --- several disks at one position --------------------------------------------------------------------------------

_Change = Callable[[DiskFaults, dict[int, DiskFault]], None]


@dataclass(frozen=True, slots=True)
class RulesChange:
    """A change of the rules of one disk.

    Attributes:
        disk: the disk.
        attach: new rules.
        detach: ids of rules that are removed.
        enable: ids of rules that are switched on.
        disable: ids of rules that are switched off.
        hold: ids of rules that hold operations from now on, after they were done.
    """

    disk: DiskFaults
    attach: Sequence[DiskFault] = ()
    detach: Sequence[int] = ()
    enable: Sequence[int] = ()
    disable: Sequence[int] = ()
    hold: Sequence[int] = ()


async def change_rules(changes: Sequence[RulesChange]) -> tuple[list[list[int]], int]:
    """Change the rules of different disks at one position.

    Returns:
        For each change the ids of its new rules; and the position: all that was done before is at or below it.

    Raises:
        RigError: ``FaultNotPossible``, ``FaultNotFound``; nothing was changed then.
        OSError: ``EBADF``: a disk was closed.
    """
    return await trio.to_thread.run_sync(change_rules_now, changes)


def change_rules_now(changes: Sequence[RulesChange]) -> tuple[list[list[int]], int]:
    """Do what :func:`change_rules` does, in this thread, which waits for running requests."""
    by_disk = {change.disk: change for change in changes}
    ids = {change.disk: [next(_numbers) for _ in change.attach] for change in changes}

    def apply(disk: DiskFaults, armed: dict[int, DiskFault]) -> None:
        change = by_disk[disk]
        for rule in change.detach:
            disk.fault(rule)
            del armed[rule]
        for enabled, rules in ((True, change.enable), (False, change.disable)):
            for rule in rules:
                armed[rule] = replace(disk.fault(rule), enabled=enabled)
        for rule in change.hold:
            armed[rule] = replace(disk.fault(rule), holds="after")
        for rule, fault in zip(ids[disk], change.attach, strict=True):
            _check_room(disk, armed, fault)
            armed[rule] = fault

    position = _change_now(list(by_disk), apply)
    return [ids[change.disk] for change in changes], position


def _check_room(disk: DiskFaults, armed: Mapping[int, DiskFault], fault: DiskFault) -> None:
    if len(armed) >= RULES_MAX:
        raise RigError(Code.FaultNotPossible, f"disk {disk.core.paths}: has {len(armed)} fault rules; allowed: {RULES_MAX}")
    fault.check_fits(str(disk.core.paths), disk.core.size_bytes)


async def attach_all(disks: Sequence[DiskFaults], fault: DiskFault) -> tuple[list[int], int]:
    """Add a rule to several disks at one position.

    Returns:
        The ids of the rule, in the order of the disks; and the position: all that was done before is at or below it, on
        all of the disks.

    Raises:
        RigError: ``FaultNotPossible``; nothing was changed then.
    """
    rules = [next(_numbers) for _ in disks]
    added = dict(zip(disks, rules, strict=True))

    def add(disk: DiskFaults, armed: dict[int, DiskFault]) -> None:
        _check_room(disk, armed, fault)
        armed[added[disk]] = fault

    return rules, await _change(disks, add)


async def detach_all(rules: Sequence[tuple[DiskFaults, int]]) -> int:
    """Remove rules of several disks at one position, and return it.

    Raises:
        RigError: ``FaultNotFound``; nothing was changed then.
    """

    def remove(disk: DiskFaults, armed: dict[int, DiskFault]) -> None:
        for rule in _of(disk, rules):
            disk.fault(rule)
            del armed[rule]

    return await _change(_disks_of(rules), remove)


async def set_all_enabled(rules: Sequence[tuple[DiskFaults, int]], enabled: bool) -> int:
    """Switch rules of several disks on or off at one position, and return it.

    Raises:
        RigError: ``FaultNotFound``; nothing was changed then.
    """

    def switch(disk: DiskFaults, armed: dict[int, DiskFault]) -> None:
        for rule in _of(disk, rules):
            armed[rule] = replace(disk.fault(rule), enabled=enabled)

    return await _change(_disks_of(rules), switch)


def _disks_of(rules: Sequence[tuple[DiskFaults, int]]) -> list[DiskFaults]:
    return list(dict.fromkeys(disk for disk, _ in rules))


def _of(disk: DiskFaults, rules: Sequence[tuple[DiskFaults, int]]) -> list[int]:
    return [rule for at, rule in rules if at is disk]


async def _change(disks: Sequence[DiskFaults], change: _Change) -> int:
    return await trio.to_thread.run_sync(_change_now, disks, change)


def _change_now(disks: Sequence[DiskFaults], change: _Change) -> int:
    with _changing:
        wanted = [disk.rules() for disk in disks]
        for disk, rules in zip(disks, wanted, strict=True):
            change(disk, rules)
        return _put_in_force(disks, wanted)


def _put_in_force(disks: Sequence[DiskFaults], rules_by_disk: Sequence[Mapping[int, DiskFault]]) -> int:
    """Replace the rules of several disks at one position, and return it."""
    kept: list[Any] = []
    rows = [
        ffi.new("struct sr_fault_rule[]", [fault.as_c(rule, kept) for rule, fault in rules.items()])
        for rules in rules_by_disk
    ]
    position = ffi.new("uint64_t *")
    with _held(disks):
        check(
            lib.sr_disks_set_faults(
                [disk.core.c for disk in disks],
                ffi.new("struct sr_fault_rule *[]", rows),
                [len(rules) for rules in rules_by_disk],
                len(disks),
                position,
            )
        )
        for disk, rules in zip(disks, rules_by_disk, strict=True):
            disk.note_in_force(rules)
    return int(position[0])


@contextlib.contextmanager
def _held(disks: Sequence[DiskFaults]) -> Iterator[None]:
    """Let none of the disks be closed in C meanwhile."""
    with contextlib.ExitStack() as stack:
        for disk in sorted(disks, key=lambda disk: id(disk.core)):
            stack.enter_context(disk.core.thread_lock)
        yield


@dataclass(frozen=True, slots=True)
class PowerLoss:
    """The extent of a loss of power.

    Attributes:
        stream: the stream of the random choices (fault_decisions.py).
        keeps: False: all unsynced writes are lost.  True: random ones; those that overlap are lost together.
        tear_bytes: with ``keeps``, some writes are torn in sectors of so many bytes: 512 or 4096; 0: none.
        survivors: numbers, from 1, of the unsynced writes of each disk that are kept; not with ``keeps``.  Where a lost
            write covered the same sectors later, nothing of them is left.
        ranges: the numbers count writes that touch these ranges (start and length); all writes if empty.
        keeps_waits: requests that wait for a rule continue to wait.
    """

    stream: int = 0
    keeps: bool = False
    tear_bytes: int = 0
    survivors: tuple[int, ...] = ()
    ranges: tuple[tuple[int, int], ...] = ()
    keeps_waits: bool = False

    def for_disk(self, number: int) -> PowerLoss:
        """Return the extent for one of several disks, which are numbered from 0: each has random choices of its own."""
        if number == 0:
            return self
        return replace(self, stream=decisions.draw(self.stream, number, decisions.FIRST_CHOICE))

    def as_c(self, memory: list[Any]) -> dict[str, Any]:
        """Return the fields of ``struct sr_power_loss``; ``memory`` gets the arrays that they point to."""
        survivors = ffi.new("uint64_t[]", list(self.survivors))
        ranges = ffi.new("struct sr_fault_range[]", list(self.ranges))
        memory += [survivors, ranges]
        return {
            "stream": self.stream,
            "keeps": self.keeps,
            "tear": self.tear_bytes,
            "survivors": survivors,
            "survivor_count": len(self.survivors),
            "ranges": ranges,
            "range_count": len(self.ranges),
            "keeps_waits": self.keeps_waits,
        }


async def lose_power(
    disks: Sequence[DiskFaults], how: PowerLoss | Sequence[PowerLoss] | None = None
) -> tuple[list[LostWrites], int]:
    """Put disks into a state that a loss of power may leave, all at one position.

    The old bytes are written to the disks and to their logs, which stay true.  Requests that wait for a rule fail
    (``EIO``), unless the rule holds them.  The guests must have no file system mounted from these disks, or it notices.

    Args:
        disks: different disks; :meth:`DiskFaults.keep_unsynced` was called for each before the writes.
        how: the extent, or that of each disk; None: all unsynced writes are lost.

    Returns:
        The effect on each disk, and the position: all records of the guests are at or below it.

    Raises:
        RigError: ``FaultNotPossible`` if the old bytes of a disk are not kept; nothing was changed then.
        OSError: the old bytes could not all be written.
    """
    if how is None or isinstance(how, PowerLoss):
        how = [(how or PowerLoss()).for_disk(number) for number in range(len(disks))]
    return await trio.to_thread.run_sync(_lose_power_now, disks, how)


def _lose_power_now(disks: Sequence[DiskFaults], how: Sequence[PowerLoss]) -> tuple[list[LostWrites], int]:
    kept: list[Any] = []
    rows, position = ffi.new("struct sr_lost_writes[]", len(disks)), ffi.new("uint64_t *")
    extents = ffi.new("struct sr_power_loss[]", [each.as_c(kept) for each in how])
    with _held(disks):
        rc = int(lib.sr_disks_lose_power([disk.core.c for disk in disks], len(disks), extents, rows, position))
        if rc == -errno.ENODATA:
            missing = ", ".join(str(disk.core.paths) for disk in disks if disk.unsynced() is None)
            raise RigError(
                Code.FaultNotPossible, f"disk {missing}: its unsynced writes are not kept, so they cannot be lost"
            )
        check(rc)
        for row in rows:
            check(row.error)
    return [_lost(row) for row in rows], int(position[0])


def _lost(row: Any) -> LostWrites:
    kept = min(row.range_count, lib.SR_LOST_RANGES_KEPT)
    ranges = tuple((row.ranges[i].start, row.ranges[i].length) for i in range(kept))
    return LostWrites(row.writes, row.lost, row.torn, row.bytes, ranges, row.range_count)
