"""Wall time as the vault shows it; nothing is decided by it (siterig.blockfs.core.clock)."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(time_ns: int) -> str:
    """RFC 3339 in UTC with microseconds: ``2026-11-21T22:13:17.000000Z``."""
    seconds, rest_ns = divmod(time_ns, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest_ns // 1000)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def rfc3339_or_none(time_ns: int | None) -> str | None:
    """As :func:`rfc3339`; None stays None."""
    return None if time_ns is None else rfc3339(time_ns)
