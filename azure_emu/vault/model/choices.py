"""Values that a caller of the vault can choose.  This module loads nothing, so that a command line can name them."""

from __future__ import annotations

from typing import Literal

Side = Literal["site", "azure"]
HOURS_DEFAULT = 24
"""The time for which recovery points are kept, unless a policy names another one."""
