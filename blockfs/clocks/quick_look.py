"""The clock of a rig, as commands need it: ages count by it, and ``status`` shows it if it is not the system's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from siterig.blockfs.clocks.rig_clock_control import ClockState

_SEQUENCE_AT, _SEQUENCE_BYTES = 16, 8
"""The number of the last change on the page of the clock (:mod:`siterig.blockfs.clocks.clock_page`)."""


def changed_clock(path: Path) -> ClockState | None:
    """Return the clock of the page at ``path``; None if it is the system's.

    A clock without any change is recognized from 8 bytes, because the rest takes longer to load than most commands do.
    """
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            number = os.pread(fd, _SEQUENCE_BYTES, _SEQUENCE_AT)
        finally:
            os.close(fd)
        if any(number):
            from siterig.blockfs.clocks.rig_clock_control import RigClockControl  # noqa: PLC0415 (it loads trio and pydantic)

            with RigClockControl(path) as control:
                state = control.state()
            return None if state.is_system else state
    return None


def document_of(state: ClockState) -> dict[str, Any]:
    """Return the clock in the JSON of ``status``."""
    return {
        "wall_ahead_ns": state.wall_ahead_ns,
        "monotonic_ahead_ns": state.monotonic_ahead_ns,
        "rate": state.rate,
        "skewed_roles": [role.role for role in state.roles if role.skew_ns or role.drift_ppm],
    }


def words_of(clock: Mapping[str, Any]) -> str:
    """Return one line about a clock that is not the system's."""
    parts = []
    for name, key in (("wall time", "wall_ahead_ns"), ("monotonic time", "monotonic_ahead_ns")):
        if clock[key]:
            parts.append(f"{name} {_span(abs(clock[key]))} {'ahead of' if clock[key] > 0 else 'behind'} the system's")
    if clock["rate"] != 1:
        parts.append(f"rate {clock['rate']:g}")
    if clock["skewed_roles"]:
        parts.append(f"other wall times in {', '.join(clock['skewed_roles'])}")
    return f"the rig has its own clock: {'; '.join(parts)}"


def _span(ns: int) -> str:
    seconds = ns / 1_000_000_000
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size or seconds == size:
            return f"{seconds / size:.4g} {unit}"
    return f"{seconds:.4g} s"
