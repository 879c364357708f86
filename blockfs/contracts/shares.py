"""Limits of a disk's log and snapshot, as a share of the disk's size.

This module loads nothing, so that a command line can name the defaults without the code that applies them.
"""

from __future__ import annotations

from typing import Literal

WhenFull = Literal["refuse", "bitmap"]
"""The action when a log cannot be written; see :class:`siterig.blockfs.changelog.disk_log.LogPolicy`."""
KEPT_SHARE_MAX = 0.5
"""Default limit of a disk's change log.  A resync costs less than a log that is longer."""
STORE_SHARE_MAX = 0.5
"""Default limit of the old data that a disk's snapshot keeps."""
