"""Which recovery points may go: a pure function of the points and the policy.

The service's rules (ASR.md 2): every point of the last two hours, then one an hour, none older than the retention; and
old points live on while no new ones come, for then nothing replaces them.  How it does that is not told; these are ours:

* Time is the rig's clock (rig_clock.py), which no setting of a host's clock moves.
* Ages are counted back from the newest point.  So nothing ages while no points come.
* An hour is an hour of the rig's clock: it has the same points in it whenever one looks, so that a point that was selected
  once stays selected.
* Of an hour the newest application-consistent point is kept, if there is one, else the newest.  Application-consistent ones
  are few, and can be used without a recovery of the application; thinned out by time alone they would go first.
* The newest point is never given up, nor the newest application-consistent one, however old.
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
"""The most that a Hyper-V policy of the service has (``recoveryPointHistoryDuration``)."""


@dataclass(frozen=True, slots=True)
class Policy:
    """``history_hours``: the service's ``recoveryPointHistoryDuration``."""

    history_hours: int = HOURS_DEFAULT


@dataclass(frozen=True, slots=True)
class PointFacts:
    """The properties of a point that the decision needs; ``elapsed_ns`` by the rig's clock."""

    id: str
    position: int
    elapsed_ns: int
    app_consistent: bool


def check_hours(hours: int) -> None:
    """``InvalidPolicy`` names the key, its value and what is allowed."""
    if not HOURS_MIN <= hours <= HOURS_MAX:
        raise RigError(
            Code.InvalidPolicy,
            f"recoveryPointHistoryDuration is {hours}; allowed: {HOURS_MIN} to {HOURS_MAX} hours (of a Hyper-V policy "
            f"of the service {HOURS_HYPER_V} at most)",
        )


def remark(hours: int) -> str | None:
    """What to say of a retention that is allowed here, but not in a Hyper-V policy of the service; else None."""
    if not HOURS_HYPER_V < hours <= HOURS_MAX:
        return None
    return (
        f"retention {hours} h: a Hyper-V policy of the service has at most {HOURS_HYPER_V} h; VMware's have 72 h with "
        "standard disks, and 15 days when modernized"
    )


def expired(points: Iterable[PointFacts], policy: Policy, in_use: Collection[str] = ()) -> list[str]:
    """Ids of the points that go.  ``in_use``: ids of points that something has open, which stay meanwhile."""
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
