"""Values that a caller of the vault can choose.  This module loads nothing, so that a command line can name them."""

from __future__ import annotations

from typing import Literal

Side = Literal["site", "azure"]
HOURS_DEFAULT = 24
"""The time for which recovery points are kept, unless a policy names another one."""
OFFICIAL_INTERVALS_S = (30.0, 300.0, 900.0)
"""The replication intervals of the service; the rig allows others."""
