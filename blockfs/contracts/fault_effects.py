"""The faults that a disk's guest can meet, as plain values.  cext/src/faults/rules.h has the same in C.

:class:`siterig.blockfs.disk.disk_faults.DiskFaults` puts them in force.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.fault_decisions import Distribution, Turns, stream_of
from siterig.cext._core import ffi, lib

GuestOperation = Literal["read", "write", "flush", "discard", "zero"]
GUEST_OPERATIONS: tuple[GuestOperation, ...] = get_args(GuestOperation)
_OPERATION_BITS: dict[GuestOperation, int] = {
    "read": lib.SR_OP_READ,
    "write": lib.SR_OP_WRITE,
    "flush": lib.SR_OP_FLUSH,
    "discard": lib.SR_OP_DISCARD,
    "zero": lib.SR_OP_ZERO,
}
_DISTRIBUTIONS: dict[Distribution, int] = {"uniform": lib.SR_UNIFORM, "normal": lib.SR_NORMAL, "pareto": lib.SR_PARETO}
_U63_MAX = (1 << 63) - 1
PARTS_MAX: int = lib.SR_TEAR_PARTS_MAX
"""A torn write has at most so many parts if those that are kept are named."""
BAD_BYTES_MAX = 16 << 30
"""The longest range of bad sectors (``SR_BAD_BYTES_MAX``)."""
SECTOR_BYTES: int = lib.SR_FAULT_SECTOR_BYTES
_PART_BYTES_MAX = (1 << 32) - 1
"""A part of a torn write has its size in 32 bits."""


@dataclass(frozen=True, slots=True)
class FailEffect:
    """The operation fails with ``error``, a positive errno, and nothing is done; with ``late`` it is done first."""

    error: int = errno.EIO
    late: bool = False


@dataclass(frozen=True, slots=True)
class DelayEffect:
    """The operation begins later, by ``delay_ns`` and a random part (fault_decisions.py)."""

    delay_ns: int
    jitter_ns: int = 0
    distribution: Distribution = "uniform"


@dataclass(frozen=True, slots=True)
class LimitEffect:
    """Operations begin no faster than these limits allow; 0 means no limit.  The first ``burst_ns`` of them are free.

    An operation that begins at once has met no fault, and is not counted as one.
    """

    bytes_per_s: int = 0
    operations_per_s: int = 0
    burst_ns: int = 0


@dataclass(frozen=True, slots=True)
class ShortenEffect:
    """A read or write of more than ``bytes_max`` bytes does only the first ``bytes_max``, and reports that."""

    bytes_max: int


@dataclass(frozen=True, slots=True)
class TearEffect:
    """A write of which the disk gets only some parts; then it fails with ``error``, or succeeds if that is 0.

    Attributes:
        parts: number of equal parts, in whole ``unit_bytes``; 0: each ``unit_bytes`` is a part.
        sizes: sizes of the parts in bytes, in place of ``parts``; the last part has the rest.
        keep: numbers of the parts that the disk gets, from 1; None: random ones, and at least one is lost.
        unit_bytes: a unit that is never torn: 512 or 4096.
        error: a positive errno, or 0.
    """

    parts: int = 0
    sizes: tuple[int, ...] = ()
    keep: tuple[int, ...] | None = None
    unit_bytes: int = SECTOR_BYTES
    error: int = 0


@dataclass(frozen=True, slots=True)
class MisdirectEffect:
    """A read or write happens ``shift_bytes`` from its place; the part outside the disk is lost, or zeros."""

    shift_bytes: int


@dataclass(frozen=True, slots=True)
class StaleEffect:
    """A read returns the bytes that the disk had when the rule came into force.

    Up to 64 MiB of old bytes are kept; blocks that change when these are used up are read as they are.
    """


@dataclass(frozen=True, slots=True)
class FlipEffect:
    """Bits are inverted: on the disk, and so in the change log, for a write; for the guest alone for a read.

    One bit is inverted in each of ``bits`` equal pieces of the operation's part of the range.
    """

    bits: int = 1


@dataclass(frozen=True, slots=True)
class BadSectorsEffect:
    """Reads of the sectors that the range touches fail with ``error``.

    They are bad from the moment at which the rule is enabled first.  A write, discard or zeroing heals those that it covers.
    """

    error: int = errno.EIO


@dataclass(frozen=True, slots=True)
class LieEffect:
    """A flush is answered at once, and makes nothing durable."""


@dataclass(frozen=True, slots=True)
class FullEffect:
    """The disk is full: writes and zeroing of holes fail with ``ENOSPC`` after ``free_bytes`` of them were filled.

    A hole is filled in whole blocks of 4 KiB.  An operation that a rule fails fills nothing.
    """

    free_bytes: int = 0


@dataclass(frozen=True, slots=True)
class FreezeEffect:
    """The operation waits until the rule is removed or disabled; with ``late`` it is done first."""

    late: bool = False


@dataclass(frozen=True, slots=True)
class NoteEffect:
    """Nothing happens but the record of the injection."""


DiskEffect = (
    FailEffect
    | DelayEffect
    | LimitEffect
    | ShortenEffect
    | TearEffect
    | MisdirectEffect
    | StaleEffect
    | FlipEffect
    | BadSectorsEffect
    | LieEffect
    | FullEffect
    | FreezeEffect
    | NoteEffect
)

_EFFECTS: dict[type[DiskEffect], tuple[int, tuple[GuestOperation, ...]]] = {
    FailEffect: (lib.SR_FAIL, GUEST_OPERATIONS),
    DelayEffect: (lib.SR_DELAY, GUEST_OPERATIONS),
    LimitEffect: (lib.SR_LIMIT, GUEST_OPERATIONS),
    ShortenEffect: (lib.SR_SHORTEN, ("read", "write")),
    TearEffect: (lib.SR_TEAR, ("write",)),
    MisdirectEffect: (lib.SR_MISDIRECT, ("read", "write")),
    StaleEffect: (lib.SR_STALE, ("read",)),
    FlipEffect: (lib.SR_FLIP, ("read", "write")),
    BadSectorsEffect: (lib.SR_BAD_SECTORS, ("read",)),
    LieEffect: (lib.SR_LIE, ("flush",)),
    FullEffect: (lib.SR_FULL, ("write", "zero")),
    FreezeEffect: (lib.SR_FREEZE, GUEST_OPERATIONS),
    NoteEffect: (lib.SR_NOTE, GUEST_OPERATIONS),
}
_SUFFIX = "Effect"
EFFECT_NAMES = {number: kind.__name__.removesuffix(_SUFFIX).lower() for kind, (number, _) in _EFFECTS.items()}
"""Names of the effects in logs, by their number in C."""
OPERATION_NAMES: dict[int, GuestOperation] = {bit: name for name, bit in _OPERATION_BITS.items()}
Hold = Literal["never", "before", "after"]
_HOLDS: dict[Hold, int] = {"never": lib.SR_HOLD_NEVER, "before": lib.SR_HOLD_BEFORE, "after": lib.SR_HOLD_AFTER}
RANGES_MAX: int = lib.SR_FAULT_RANGES_MAX
"""A rule has at most so many ranges."""


def operations_of(effect: type[DiskEffect]) -> tuple[GuestOperation, ...]:
    """Return the operations that can meet an effect."""
    return _EFFECTS[effect][1]


class FaultCounter:
    """The counts of one rule; the same counter in the rules of several disks makes them count as one rule."""

    def __init__(self, matched: int = 0, fired: int = 0) -> None:
        """Begin with the counts of a process that has ended, or at 0."""
        counter = lib.sr_fault_counter_new(matched, fired)
        if counter == ffi.NULL:
            raise MemoryError
        self.c = ffi.gc(counter, lib.sr_fault_counter_free)

    def read(self) -> tuple[int, int, int | None]:
        """Return the numbers of matching operations and of faults, and the time of the last fault (wall time, ns)."""
        found = ffi.new("struct sr_fault_counts *")
        lib.sr_fault_counter_read(self.c, found)
        return found.matched, found.fired, found.last_ns or None


@dataclass(frozen=True, slots=True)
class DiskFault:
    """One fault rule of a disk.

    Attributes:
        name: shown to people; the random choices depend on it.
        effect: the fault.
        operations: the operations that can meet it; all that the effect allows if empty.
        start: first byte of the range.
        length: bytes of the range; 0: to the end of the disk.  A flush has no range, and always matches.
        turns: which of the matching operations meet it; None: all of them, with seed 0.
        enabled: False: the rule does nothing, and counts nothing.
        ranges: start and length of several ranges, in place of ``start`` and ``length``: ascending, and none touches
            another.
        delay: a delay before another effect.
        counter: counts in common with the rules of other disks; None: counts of its own.
        holds: whether an operation that meets the fault waits for :meth:`DiskFaults.release`: before it is done, or after
            it was done and before it is answered.
    """

    name: str
    effect: DiskEffect
    operations: tuple[GuestOperation, ...] = ()
    start: int = 0
    length: int = 0
    turns: Turns | None = None
    enabled: bool = True
    ranges: tuple[tuple[int, int], ...] = ()
    delay: DelayEffect | None = None
    counter: FaultCounter | None = None
    holds: Hold = "never"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            RigError: ``FaultNotPossible``.
        """
        allowed = _EFFECTS[type(self.effect)][1]
        for operation in self.operations:
            if operation not in allowed:
                raise self._refused(f"operation {operation!r}; allowed: {', '.join(allowed)}")
        self._check("start", self.start, 0, _U63_MAX)
        self._check("length", self.length, 0, _U63_MAX)
        if len(self.ranges) > RANGES_MAX:
            raise self._refused(f"has {len(self.ranges)} ranges; allowed: {RANGES_MAX}")
        for effect in (self.effect, *([self.delay] if self.delay else [])):
            for name, least, most in _LIMITS.get(type(effect), ()):
                self._check(name, getattr(effect, name), least, most)
        if isinstance(self.effect, TearEffect):
            self._check_tear(self.effect)

    def check_fits(self, disk: str, size_bytes: int) -> None:
        """Check that the rule can be armed on a disk of this name and size.

        Raises:
            RigError: ``FaultNotPossible``.
        """
        length = self.length or max(size_bytes - self.start, 0)
        if self.ranges:
            length = sum(bytes_ for _, bytes_ in self.ranges)
        if isinstance(self.effect, BadSectorsEffect) and length > BAD_BYTES_MAX:
            raise self._refused(f"disk {disk}: bad sectors are {length} bytes; allowed: up to {BAD_BYTES_MAX} (16 GiB)")

    def _check(self, name: str, value: int, least: int, most: int) -> None:
        if not least <= value <= most:
            raise self._refused(f"{name} is {value}; allowed: {least} to {most}")

    def _check_tear(self, effect: TearEffect) -> None:
        parts = len(effect.sizes) or effect.parts
        if effect.unit_bytes not in (SECTOR_BYTES, lib.SR_BLOCK_BYTES):
            raise self._refused(f"unit_bytes is {effect.unit_bytes}; allowed: {SECTOR_BYTES} and {lib.SR_BLOCK_BYTES}")
        if effect.sizes and (len(effect.sizes) > PARTS_MAX or min(effect.sizes) < 1 or max(effect.sizes) > _PART_BYTES_MAX):
            raise self._refused(
                f"sizes are {effect.sizes}; allowed: up to {PARTS_MAX} sizes of 1 to {_PART_BYTES_MAX} bytes"
            )
        if effect.keep is None:
            return
        if effect.keep and not 1 <= min(effect.keep) <= max(effect.keep) <= min(parts or PARTS_MAX, PARTS_MAX):
            raise self._refused(f"keep names parts {effect.keep}; allowed: 1 to {min(parts or PARTS_MAX, PARTS_MAX)}")

    def _refused(self, why: str) -> RigError:
        return RigError(Code.FaultNotPossible, f"fault {self.name!r}: {why}")

    @property
    def number(self) -> int:
        """The number of the effect in C."""
        return _EFFECTS[type(self.effect)][0]

    def as_c(self, rule: int, memory: list[Any]) -> dict[str, Any]:
        """Return the fields of ``struct sr_fault_rule`` for the rule with this id; ``memory`` gets the arrays in them."""
        ranges = ffi.new("struct sr_fault_range[]", list(self.ranges)) if self.ranges else ffi.NULL
        memory.append(ranges)
        turns = self.turns if self.turns is not None else Turns(stream_of(0, self.name))
        operations = self.operations or _EFFECTS[type(self.effect)][1]
        return {
            "id": rule,
            "enabled": self.enabled,
            "ops": sum({_OPERATION_BITS[name] for name in operations}),
            "start": self.start,
            "length": self.length,
            "turns": (turns.stream, turns.occurrence, turns.every, turns.threshold, turns.times),
            "effect": self.number,
            "ranges": ranges,
            "range_count": len(self.ranges),
            "counter": ffi.NULL if self.counter is None else self.counter.c,
            "holds": _HOLDS[self.holds],
            **(_fields(self.delay) if self.delay else {}),
            **_fields(self.effect),
        }


_LIMITS: dict[type[DiskEffect], Sequence[tuple[str, int, int]]] = {
    FailEffect: [("error", 1, 4095)],
    DelayEffect: [("delay_ns", 0, _U63_MAX >> 8), ("jitter_ns", 0, _U63_MAX >> 8)],
    LimitEffect: [("bytes_per_s", 0, _U63_MAX), ("operations_per_s", 0, _U63_MAX), ("burst_ns", 0, _U63_MAX >> 8)],
    ShortenEffect: [("bytes_max", 0, _U63_MAX)],
    TearEffect: [("parts", 0, 1 << 16), ("error", 0, 4095)],
    MisdirectEffect: [("shift_bytes", -(1 << 62), 1 << 62)],
    FlipEffect: [("bits", 1, 4096)],
    BadSectorsEffect: [("error", 1, 4095)],
    FullEffect: [("free_bytes", 0, _U63_MAX)],
}
"""Attribute, least and largest value."""


_NAMES_IN_C = {
    "bytes_max": "bytes",
    "free_bytes": "bytes",
    "operations_per_s": "ops_per_s",
    "shift_bytes": "shift",
}
"""Fields of ``struct sr_fault_rule`` that have other names here."""


def _fields(effect: DiskEffect) -> dict[str, Any]:
    if isinstance(effect, TearEffect):
        return _tear(effect)
    values = {_NAMES_IN_C.get(field.name, field.name): getattr(effect, field.name) for field in fields(effect)}
    if isinstance(effect, DelayEffect):
        values["distribution"] = _DISTRIBUTIONS[effect.distribution]
    return values


def _tear(effect: TearEffect) -> dict[str, Any]:
    return {
        "parts": len(effect.sizes) or effect.parts,
        "sizes": list(effect.sizes),
        "keep": sum(1 << (number - 1) for number in set(effect.keep or ())),
        "keeps_random": effect.keep is None,
        "unit": effect.unit_bytes,
        "error": effect.error,
    }
