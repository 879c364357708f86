"""Selects the recovery points that retention deletes: a pure function of the points and the policy.

The service's rules (ASR.md 2): every point of the last two hours, then one for each hour, none older than the retention; old
points stay while no new ones come, because nothing replaces them.  The service does not document more; these rules are ours:

* Time is the rig's clock (rig_clock.py), which no setting of a host's clock moves. * Ages are counted back from the newest
point.  So nothing ages while no points come. * An hour is an hour of the rig's clock: it always has the same points, so a
point that was kept once stays kept. * In an hour the newest application-consistent point is kept, if there is one, else the
newest.  Application-consistent points
  are few, and can be used without a recovery of the application; thinned out by time alone they would be lost first.
* A point that a user pinned is kept until it is unpinned, and so is a point that is open.
* The newest point and the newest application-consistent point are never deleted, however old they are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from siterig.azure_emu.vault.model.choices import HOURS_DEFAULT
from siterig.blockfs.core.errors import Code, RigError

HOUR_NS = 3_600_000_000_000
EVERY_POINT_NS = 2 * HOUR_NS
HOURS_MIN, HOURS_MAX = 1, 15 * 24
HOURS_HYPER_V = 24
"""The longest retention of a Hyper-V policy of the service (``recoveryPointHistoryDuration``)."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A retention policy; ``history_hours`` is the service's ``recoveryPointHistoryDuration``."""

    history_hours: int = HOURS_DEFAULT


@dataclass(frozen=True, slots=True)
class PointFacts:
    """The properties of a point that the decision needs; ``elapsed_ns`` by the rig's clock."""

    id: str
    position: int
    elapsed_ns: int
    app_consistent: bool


def check_hours(hours: int) -> None:
    """Check a retention (``InvalidPolicy`` names the key, its value and the limits)."""
    if not HOURS_MIN <= hours <= HOURS_MAX:
        raise RigError(
            Code.InvalidPolicy,
            f"recoveryPointHistoryDuration is {hours}; allowed: {HOURS_MIN} to {HOURS_MAX} hours (of a Hyper-V policy "
            f"of the service {HOURS_HYPER_V} at most)",
        )


def remark(hours: int) -> str | None:
    """Return a remark about a retention that is allowed here but not in a Hyper-V policy of the service; else None."""
    if not HOURS_HYPER_V < hours <= HOURS_MAX:
        return None
    return (
        f"retention {hours} h: a Hyper-V policy of the service has at most {HOURS_HYPER_V} h; VMware's have 72 h with "
        "standard disks, and 15 days when modernized"
    )


def expired(points: Iterable[PointFacts], policy: Policy, in_use: Collection[str] = ()) -> list[str]:
    """Return the ids of the points to delete.  ``in_use``: ids of points that are open or pinned, which stay meanwhile."""
    newest_first = sorted(points, key=lambda point: point.position, reverse=True)
    if not newest_first:
        return []
    as_of_ns = newest_first[0].elapsed_ns
    oldest_ns = as_of_ns - policy.history_hours * HOUR_NS
    kept = {newest_first[0].id, *in_use}
    kept.update([point.id for point in newest_first if point.app_consistent][:1])
    of_hour: dict[int, PointFacts] = {}
    for point in newest_first:
        if point.elapsed_ns > as_of_ns - EVERY_POINT_NS:
            kept.add(point.id)
            continue
        hour = point.elapsed_ns // HOUR_NS
        best = of_hour.get(hour)
        if best is None or (point.app_consistent and not best.app_consistent):
            of_hour[hour] = point
    # FailoverPoint out of the whole hour, as it was when the hour was thinned out; then it may have become too old.
    kept.update(point.id for point in of_hour.values() if point.elapsed_ns >= oldest_ns)
    return [point.id for point in newest_first if point.id not in kept]
