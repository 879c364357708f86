"""Limits of durations that become health errors: the only table (docs/reference/jobs-and-states.md shows it)."""

from __future__ import annotations

import math

from siterig.blockfs.core.errors import Code

STALLED_S = 30.0
"""The limit for data of a VM that waits in the cache account while nothing of it is applied."""
APPLIED_BEHIND_S = 300.0
"""The limit for the oldest state that was sent and is not applied, while older ones are being applied."""
POINT_INTERVALS, POINT_EXTRA_S = 3, 60.0
"""The limit for a VM without a new recovery point: this many intervals of the policy, and this time in addition."""
ROLE_AWAY_S = 60.0
"""The limit for a role that is not ready; a hung or failed role is an error at once."""
SUPERVISOR_SILENT_S = 30.0
"""The limit for a supervisor that does not report the states of the roles."""

SUPERVISOR_SILENT = "SupervisorSilent"
"""The code of the error about such a supervisor."""

WAIT_S = 60.0
"""The limit for a wait of a role whose code is not in the following table."""
WAIT_S_BY_CODE = {
    "RecoverySideBehind": 120.0,
    "AwaitingApply": 120.0,
    "DescriptorsExhausted": 10.0,
    "BandwidthLimited": 3600.0,
    "ScheduledStart": math.inf,
    "ResyncDue": math.inf,
    "AppScriptRuns": math.inf,
    Code.MailUnsent: math.inf,
    Code.PartMissing: 30.0,
}


def wait_s(code: str) -> float:
    """Return the limit for a wait with this code, in seconds."""
    return WAIT_S_BY_CODE.get(code, WAIT_S)


def point_s(interval_s: float) -> float:
    """Return the limit for a VM without a new recovery point under a policy of this interval, in seconds."""
    return POINT_INTERVALS * interval_s + POINT_EXTRA_S
