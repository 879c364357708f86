"""Judges the resyncs of a thrash: each needs a cause of its own among the faults that struck before it.

A reason without an entry in ``CAUSES`` has none: no fault of a thrash replaces a disk, or makes it older than its data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from siterig.blockfs.core.clock_reading import SECOND_NS
from siterig.blockfs.core.errors import Code

LASTS_S = 200.0
"""A fault can be the cause of a resync so long after its end: a damaged bundle is deleted after 150 s."""
ABANDONED_S = 600.0
"""The vault knows an abandoned log so soon at the latest: the agent reports it in its next cycle."""
_SKEW_S = 1.0
"""Times of two processes differ by less."""
_OUTAGES = frozenset(
    {
        *("kill", "kill-in-log", "kill-in-store", "stop", "cut", "black-hole", "latency", "slow-link"),
        *("blob-errors", "blob-timeouts", "blob-lost", "blob-damaged", "log-no-space", "store-no-space", "store-error"),
    }
)
"""The kinds of faults during which a log grows."""
CAUSES: Mapping[str, frozenset[str]] = {
    Code.LogOverflow: _OUTAGES,
    Code.LogFull: frozenset({"log-no-space"}),
    Code.ManagedDiskOlder: frozenset({"store-no-space", "store-error"}),
    "PartUnusable": frozenset({"blob-damaged"}),
}
"""The kinds of faults that can cause a resync, by its reason."""
_OF_LOGS = frozenset({Code.LogOverflow, Code.LogFull})
"""The reasons for which the site must have abandoned a log."""
_ABANDONED = re.compile(r"^(\S+) .*\blog_abandoned\b.* disk=([^/\s]+)/\S+ reason=(\w+)", re.M)


@dataclass(slots=True)
class StruckFault:
    """A fault that was armed: its kind, and the wall times of its begin and end; no end while it is armed."""

    kind: str
    from_ns: int
    until_ns: int | None = None


@dataclass(frozen=True, slots=True)
class MarkedResync:
    """A resync that the vault has marked."""

    vm: str
    reason: str
    time_ns: int


@dataclass(frozen=True, slots=True)
class AbandonedLog:
    """A log that the site has abandoned."""

    vm: str
    reason: str
    time_ns: int


def time_ns_of(text: str) -> int:
    """Return the wall time of an event or of a line of a log."""
    moment = datetime.fromisoformat(text)
    return int(moment.timestamp()) * SECOND_NS + moment.microsecond * 1000


def abandoned_logs(logs: Iterable[Path]) -> list[AbandonedLog]:
    """Return the logs that the site has abandoned, by its own logs."""
    return [
        AbandonedLog(vm, reason, time_ns_of(time))
        for path in logs
        for time, vm, reason in _ABANDONED.findall(path.read_text(errors="replace"))
    ]


def missing_cause(resync: MarkedResync, faults: Iterable[StruckFault], abandoned: Iterable[AbandonedLog]) -> str | None:
    """Return in words which cause of a resync is missing; None if it has all.

    Args:
        resync: the resync.
        faults: the faults of the thrash.
        abandoned: the logs that the site has abandoned.
    """
    kinds = CAUSES.get(resync.reason)
    if kinds is None:
        return "no fault of a thrash can cause it"
    if resync.reason in _OF_LOGS and not any(
        (log.vm, log.reason) == (resync.vm, resync.reason)
        and -_SKEW_S * SECOND_NS <= resync.time_ns - log.time_ns <= ABANDONED_S * SECOND_NS
        for log in abandoned
    ):
        return f"the site abandoned no log of {resync.vm} for it"
    if not any(fault.kind in kinds and _can_cause(fault, resync) for fault in faults):
        return f"none of its causes struck in the {LASTS_S:g} s before it: {', '.join(sorted(kinds))}"
    return None


def _can_cause(fault: StruckFault, resync: MarkedResync) -> bool:
    is_late = fault.from_ns > resync.time_ns
    is_over = fault.until_ns is not None and fault.until_ns + LASTS_S * SECOND_NS < resync.time_ns
    return not (is_late or is_over)
