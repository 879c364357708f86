"""The start of a scheduled initial replication: the time that a user gives, and the wait for it.

The policy of the service has it as ``onlineReplicationStartTime``.  Nothing is tracked before it, so no log grows.
"""

from __future__ import annotations

import re

from siterig.azure_emu.vault.jobs.engine import JobContext
from siterig.azure_emu.vault.jobs.job_wire import WAITS_FOR
from siterig.azure_emu.vault.mounts.mounts import parse_time
from siterig.blockfs.core.clock import rfc3339
from siterig.blockfs.core.clock_reading import SECOND_NS
from siterig.blockfs.core.errors import Code, RigError

START = "start_ns"
"""The key of a job's variables with the wall time at which its initial replication begins."""
LOOK_AGAIN_S = 30.0
"""The wall clock can be set, so it is read again after this time."""
_DAY_NS = 86_400 * SECOND_NS
_TIME_OF_DAY = re.compile(r"(\d\d):(\d\d)", re.ASCII)


def parse_start(text: str, now_ns: int) -> int:
    """Return the wall time of ``HH:MM`` (UTC, the next one) or of a time in RFC 3339.

    Raises:
        RigError: ``InvalidTime``.
    """
    match = _TIME_OF_DAY.fullmatch(text)
    if match is not None:
        hour, minute = int(match[1]), int(match[2])
        if hour > 23 or minute > 59:
            raise RigError(Code.InvalidTime, f"start_at: {text!r} is no time of a day; allowed: 00:00 to 23:59, in UTC")
        start_ns = now_ns - now_ns % _DAY_NS + (hour * 60 + minute) * 60 * SECOND_NS
        return start_ns if start_ns > now_ns else start_ns + _DAY_NS
    start_ns = parse_time(text) // 1000 * 1000  # it returns the end of the microsecond
    if start_ns <= now_ns:
        raise RigError(
            Code.InvalidTime,
            f"start_at: {text!r} has passed, it is {rfc3339(now_ns)}; allowed: HH:MM in UTC, or a later time",
        )
    return start_ns


async def wait_for_start(job: JobContext) -> None:
    """Wait until the initial replication is to begin; return at once if no time was given."""
    start_ns = job.variables.get(START)
    if start_ns is None:
        return
    clock, place, why = job.context.clock, "scheduled start", f"the initial replication is to begin at {rfc3339(start_ns)}"
    job.variables[WAITS_FOR] = why
    await job.save_variables()
    try:
        while (left_ns := start_ns - clock.wall_ns()) > 0:
            job.context.waits.set(place, "ScheduledStart", why, vm=job.vm)
            await clock.sleep(min(LOOK_AGAIN_S, left_ns / SECOND_NS))
    finally:
        job.context.waits.clear(place, vm=job.vm)
    del job.variables[WAITS_FOR]
    await job.save_variables()
