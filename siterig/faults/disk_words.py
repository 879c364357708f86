"""Injections of disks in words, as log, report and timeline show them."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence

from siterig.blockfs.contracts.fault_effects import DiskFault, FailEffect, FlipEffect, TearEffect
from siterig.blockfs.core import fault_decisions as decisions
from siterig.blockfs.disk.disk_faults import DiskInjection, LostWrites
from siterig.scenarios.faults.operations import FaultOperation

Range = tuple[int, int]
"""Start and length in bytes."""
RANGES_MAX = 64
"""A record has at most so many ranges; for more of them it has the whole operation."""
_NO_BIT = (1 << 64) - 1
_WITHOUT_BYTES = ("delay", "limit", "lie", "freeze", "note")
_TO_THE_END = 1 << 63


def operation_words(disk: str, injection: DiskInjection) -> str:
    """Return the operation: ``write web01/data, 4096 bytes at 1048576``."""
    start = None if injection.operation == "flush" else injection.offset
    length = 0 if start is None else injection.length
    return FaultOperation("disk", injection.operation, {"disk": disk}, start=start, length=length).title()


def done_words(injection: DiskInjection, fault: DiskFault | None) -> str:
    """Return the action of a rule: ``failed with EIO``."""
    if injection.hidden:
        return "nothing: another fault decided the result of the operation"
    words = _DONE[injection.effect](injection)
    return f"was done, and {words}" if _is_late(fault) else words


def changed_ranges(
    injection: DiskInjection, fault: DiskFault | None, ranges: Sequence[Range], size_bytes: int
) -> tuple[Range, ...]:
    """Return start and length of the bytes that were changed, lost or not delivered.

    Args:
        injection: the injection.
        fault: the rule that made it.
        ranges: the ranges of the rule on this disk, if it has several.
        size_bytes: the size of the disk.
    """
    if injection.hidden or injection.effect in _WITHOUT_BYTES or not injection.length:
        return ()
    whole = (injection.offset, injection.length)
    found = [whole]
    if _is_late(fault) and injection.operation != "read":
        found = []
    elif injection.effect == "flip":
        found = [(bit // 8, 1) for bit in _all_bits(injection, fault, ranges)]
    elif injection.effect == "tear":
        found = _lost_parts(injection, fault)
    elif injection.effect == "shorten":
        done = min(injection.detail[0], injection.length)
        found = [(injection.offset + done, injection.length - done)]
    elif injection.effect == "misdirect" and injection.operation == "write":
        start = max(injection.offset + _shift(injection), 0)
        end = min(injection.offset + _shift(injection) + injection.length, size_bytes)
        found += [(start, end - start)] if start < end else []
    return tuple(found) if len(found) <= RANGES_MAX else (whole,)


def loss_words(lost: Mapping[str, LostWrites], position: int, *, crashes: bool) -> str:
    """Return the effect of a power loss of several disks, by their names."""
    writes, gone, torn = (sum(getattr(each, key) for each in lost.values()) for key in ("writes", "lost", "torn"))
    disks = "1 disk" if len(lost) == 1 else f"{len(lost)} disks"
    text = f"power loss of {disks} at position {position}: {gone} of {writes} unsynced writes lost"
    if torn:
        text += f", {torn} torn"
    if crashes:
        text += "; every operation fails now"
    places = [f"{disk} {_range_words(each)}" for disk, each in lost.items() if each.ranges]
    return f"{text}; old bytes are back: {', '.join(places)}" if places else text


def _range_words(lost: LostWrites) -> str:
    shown = " ".join(f"{start}+{length}" for start, length in lost.ranges)
    more = lost.range_count - len(lost.ranges)
    return f"{shown} and {more} more" if more else shown


def _is_late(fault: DiskFault | None) -> bool:
    return fault is not None and isinstance(fault.effect, FailEffect) and fault.effect.late


def _error(injection: DiskInjection) -> str:
    return errno.errorcode.get(injection.error, str(injection.error))


def _ms(duration_ns: int) -> str:
    return f"{round(duration_ns / 1e6, 3):g} ms"


def _torn(injection: DiskInjection) -> str:
    parts, mask = injection.detail[0], injection.detail[1]
    kept = [str(part + 1) for part in range(min(parts, 64)) if mask >> part & 1]
    text = f"torn in {parts} parts; the disk has {('part ' + ', '.join(kept)) if kept else 'none'} of them"
    return f"{text}; failed with {_error(injection)}" if injection.error else text


def _lost_parts(injection: DiskInjection, fault: DiskFault | None) -> list[Range]:
    """Return the parts of a torn write that the disk did not get."""
    if fault is None or fault.turns is None or not isinstance(fault.effect, TearEffect):
        return [(injection.offset, injection.length)]
    tear, end = fault.effect, injection.length
    kept = decisions.torn_ranges(
        fault.turns.stream, injection.n, end, parts=tear.parts or None, sizes=tear.sizes or None, keep=tear.keep
    )
    found, at = [], 0
    for start, upto in [*kept, (end, end)]:
        if start > at:
            found.append((injection.offset + at, start - at))
        at = upto
    return found


def _shift(injection: DiskInjection) -> int:
    return injection.detail[0] - (1 << 64) if injection.detail[0] >> 63 else injection.detail[0]


def _shifted(injection: DiskInjection) -> str:
    shift = _shift(injection)
    return f"done at {injection.offset + shift}, {abs(shift)} bytes {'before' if shift < 0 else 'after'} its place"


def _bits(injection: DiskInjection) -> list[int]:
    return [bit for bit in injection.detail if bit != _NO_BIT]


def _all_bits(injection: DiskInjection, fault: DiskFault | None, ranges: Sequence[Range]) -> list[int]:
    """Return the inverted bits, of which the record has only the first ones."""
    found = _bits(injection)
    if (
        len(found) < len(injection.detail)
        or fault is None
        or fault.turns is None
        or not isinstance(fault.effect, FlipEffect)
    ):
        return found
    places = ranges or [(fault.start, fault.length or _TO_THE_END)]
    start, length = next(each for each in places if each[0] + each[1] > injection.offset)
    first, end = max(start, injection.offset), min(start + length, injection.offset + injection.length)
    bits = decisions.flipped_bits(fault.turns.stream, injection.n, (end - first) * 8, fault.effect.bits)
    return [first * 8 + bit for bit in bits]


def _flipped(injection: DiskInjection) -> str:
    bits = [f"bit {bit % 8} of byte {bit // 8}" for bit in _bits(injection)]
    more = " and more" if len(bits) == len(injection.detail) else ""
    return f"inverted {', '.join(bits)}{more}"


_DONE: Mapping[str, Callable[[DiskInjection], str]] = {
    "fail": lambda injection: f"failed with {_error(injection)}",
    "delay": lambda injection: f"delayed by {_ms(injection.detail[0])}",
    "limit": lambda injection: f"delayed by {_ms(injection.detail[0])}, so that the limit is kept",
    "shorten": lambda injection: f"only the first {injection.detail[0]} bytes were done",
    "tear": _torn,
    "misdirect": _shifted,
    "stale": lambda _injection: "returned the bytes from before the rule came into force",
    "flip": _flipped,
    "badsectors": lambda injection: f"failed with {_error(injection)}: bad sectors",
    "lie": lambda _injection: "acknowledged, and nothing was made durable",
    "full": lambda injection: f"failed with {_error(injection)}: the disk is full",
    "freeze": lambda _injection: "waits until the rule ends",
    "note": lambda _injection: "noted",  # a mark: the caller knows its name
}
