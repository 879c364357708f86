"""Which recovery points may go: a pure function of the points, the time and the policy.

The service's rules (ASR.md 2): every point of the last two hours, then one an hour, none older than the retention; and
old points live on while no new ones come, for then nothing replaces them.

* Ages are counted back from the newest point, or from now if that is earlier.  So nothing ages while no points come; a site
  whose clock is behind the vault's loses nothing by that, and one wild time stamp from the future does not age the rest.
* An hour is an hour of UTC: it has the same points in it whenever one looks, so what is kept once is kept on.
* Of an hour the newest application-consistent point is kept, if there is one, else the newest.  Application-consistent ones
  are few, and can be used without a recovery of the application; thinned out by time alone they would go first.
* The newest point is never given up, nor the newest application-consistent one, however old.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from blockfs.errors import RigError

HOUR_NS = 3_600_000_000_000
EVERY_POINT_NS = 2 * HOUR_NS
HOURS_DEFAULT = 24
HOURS_MIN, HOURS_MAX = 1, 24
"""Of a Hyper-V policy (``recoveryPointHistoryDuration``)."""


@dataclass(frozen=True, slots=True)
class Policy:
    """``history_hours``: the service's ``recoveryPointHistoryDuration``."""

    history_hours: int = HOURS_DEFAULT


@dataclass(frozen=True, slots=True)
class PointFacts:
    """What the decision needs of a point; ``time_ns`` by the site's clock."""

    id: str
    position: int
    time_ns: int
    app_consistent: bool


def check_hours(hours: int) -> None:
    """``InvalidPolicy`` names the key, its value and what is allowed."""
    if not HOURS_MIN <= hours <= HOURS_MAX:
        raise RigError(
            "InvalidPolicy",
            f"recoveryPointHistoryDuration is {hours}; allowed: {HOURS_MIN} to {HOURS_MAX} hours, as the service has it for "
            "Hyper-V",
        )


def expired(points: Iterable[PointFacts], now_ns: int, policy: Policy, in_use: Collection[str] = ()) -> list[str]:
    """Ids of the points that go.  ``in_use``: ids of points that something has open, which stay meanwhile."""
    newest_first = sorted(points, key=lambda point: point.position, reverse=True)
    if not newest_first:
        return []
    as_of_ns = min(now_ns, newest_first[0].time_ns)
    oldest_ns = as_of_ns - policy.history_hours * HOUR_NS
    kept = {newest_first[0].id, *in_use}
    kept.update([point.id for point in newest_first if point.app_consistent][:1])
    of_hour: dict[int, PointFacts] = {}
    for point in newest_first:
        if point.time_ns > as_of_ns - EVERY_POINT_NS:
            kept.add(point.id)
            continue
        hour = point.time_ns // HOUR_NS
        best = of_hour.get(hour)
        if best is None or (point.app_consistent and not best.app_consistent):
            of_hour[hour] = point
    # Chosen out of the whole hour, as it was when the hour was thinned out; then it may have become too old.
    kept.update(point.id for point in of_hour.values() if point.time_ns >= oldest_ns)
    return [point.id for point in newest_first if point.id not in kept]
