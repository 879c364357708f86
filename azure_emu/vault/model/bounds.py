"""How long something may last before it is a health error: the one table (docs/reference/jobs-and-states.md shows it)."""

from __future__ import annotations

from siterig.blockfs.core.errors import Code

STALLED_S = 30.0
"""Data of a VM waits in the cache account, and nothing of it is applied."""
APPLIED_BEHIND_S = 300.0
"""The oldest state that was sent and is not applied, though others are being applied."""
POINT_INTERVALS, POINT_EXTRA_S = 3, 60.0
"""No new recovery point: so many intervals of the policy, and so long in addition."""
ROLE_AWAY_S = 60.0
"""A role is not ready, and was not reported as hung or failed, which are errors at once."""
SUPERVISOR_SILENT_S = 30.0
"""The supervisor has not reported the states of the roles."""

WAIT_S = 60.0
"""A wait of a role, unless its code is here:"""
WAIT_S_BY_CODE = {
    "RecoverySideBehind": 120.0,
    "AwaitingApply": 120.0,
    "DescriptorsExhausted": 10.0,
    Code.PartMissing: 30.0,
}


def wait_s(code: str) -> float:
    """For a wait of this code."""
    return WAIT_S_BY_CODE.get(code, WAIT_S)


def point_s(interval_s: float) -> float:
    """Without a new recovery point, under a policy of this interval."""
    return POINT_INTERVALS * interval_s + POINT_EXTRA_S
