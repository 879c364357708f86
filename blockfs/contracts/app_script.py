"""The script of a VM that prepares its applications for an application-consistent point."""

from __future__ import annotations

from pydantic import Field

from siterig.blockfs.core.wire_model import WireModel

TIME_LIMIT_S = 60.0
TIME_LIMIT_S_MIN, TIME_LIMIT_S_MAX = 1.0, 600.0


class AppScript(WireModel):
    """A program of the site's host: called with ``--pre`` before a point is taken, and with ``--post`` after it.

    ``time_limit_s``: the time after which a call is ended, in seconds.
    """

    path: str = Field(pattern=r"^/[^\x00]+$")
    time_limit_s: float = Field(default=TIME_LIMIT_S, ge=TIME_LIMIT_S_MIN, le=TIME_LIMIT_S_MAX)
