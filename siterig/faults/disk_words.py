"""Injections of disks in words, as log, report and timeline show them."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence

from siterig.blockfs.disk.disk_faults import DiskInjection, LostWrites
from siterig.scenarios.faults.operations import FaultOperation

_NO_BIT = (1 << 64) - 1
_WITHOUT_BYTES = ("delay", "limit", "lie", "freeze", "note")


def operation_words(disk: str, injection: DiskInjection) -> str:
    """Return the operation: ``write web01/data, 4096 bytes at 1048576``."""
    start = None if injection.operation == "flush" else injection.offset
    length = 0 if start is None else injection.length
    return FaultOperation("disk", injection.operation, {"disk": disk}, start=start, length=length).title()


def done_words(injection: DiskInjection) -> str:
    """Return the action: ``failed with EIO``."""
    if injection.hidden:
        return "nothing: another fault decided the result of the operation"
    return _DONE[injection.effect](injection)


def changed_ranges(injection: DiskInjection) -> tuple[tuple[int, int], ...]:
    """Return start and length of the bytes that were changed, lost or not delivered."""
    if injection.hidden or injection.effect in _WITHOUT_BYTES or not injection.length:
        return ()
    if injection.effect == "flip":
        return tuple((bit // 8, 1) for bit in _bits(injection))
    done = min(injection.detail[0], injection.length) if injection.effect == "shorten" else 0
    return ((injection.offset + done, injection.length - done),)


def loss_words(lost: Sequence[LostWrites], position: int, *, crashes: bool) -> str:
    """Return the effect of a power loss of several disks."""
    writes, gone, torn = (sum(getattr(each, key) for each in lost) for key in ("writes", "lost", "torn"))
    disks = "1 disk" if len(lost) == 1 else f"{len(lost)} disks"
    text = f"power loss of {disks} at position {position}: {gone} of {writes} unsynced writes lost"
    if torn:
        text += f", {torn} torn"
    return f"{text}; every operation fails now" if crashes else text


def _error(injection: DiskInjection) -> str:
    return errno.errorcode.get(injection.error, str(injection.error))


def _ms(duration_ns: int) -> str:
    return f"{round(duration_ns / 1e6, 3):g} ms"


def _torn(injection: DiskInjection) -> str:
    parts, mask = injection.detail[0], injection.detail[1]
    kept = [str(part + 1) for part in range(min(parts, 64)) if mask >> part & 1]
    text = f"torn in {parts} parts; the disk has {('part ' + ', '.join(kept)) if kept else 'none'} of them"
    return f"{text}; failed with {_error(injection)}" if injection.error else text


def _shifted(injection: DiskInjection) -> str:
    shift = injection.detail[0] - (1 << 64) if injection.detail[0] >> 63 else injection.detail[0]
    return f"done at {injection.offset + shift}, {abs(shift)} bytes {'before' if shift < 0 else 'after'} its place"


def _bits(injection: DiskInjection) -> list[int]:
    return [bit for bit in injection.detail if bit != _NO_BIT]


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
