"""Removes a rig whose first start failed; only the last lines of its logs are shown.

Fault contract: nothing is removed of a rig that was up once, nor of one that another process has started meanwhile.  After a
kill during the removal a folder stays; ``siterig up`` continues with it, and ``siterig down`` clears it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable

import structlog

from siterig.blockfs.core.errors import RigError
from siterig.core.lock import take_lock
from siterig.core.paths import Layout
from siterig.supervisor import cleanup
from siterig.supervisor.process import last_lines

LINES_SHOWN = 10
"""The number of lines of each log that are shown."""
_log = structlog.get_logger(__name__)


def is_new(layout: Layout) -> bool:
    """Return True if the rig's folder is missing or has at most the lock of an interrupted first start."""
    return not layout.root.is_dir() or {entry.name for entry in layout.root.iterdir()} <= {layout.lock.name}


def report_logs(layout: Layout, names: list[str], report: Callable[[str, str], None]) -> None:
    """Call ``report(name, line)`` with the last lines of these logs, which :func:`remove` deletes."""
    for name in names:
        for line in last_lines(layout.log(name), LINES_SHOWN):
            report(name, f"its log said: {line}")


async def remove(layout: Layout, *, had_folder: bool) -> None:
    """Remove all files of the rig, and its folder unless it existed before.

    Files that are still in use or mounted stay; the log of this process names the reason.
    """
    try:
        lock = take_lock(layout.lock, waits=False)
        try:
            await cleanup.clear(layout)
            if cleanup.mounts_below(layout.root):
                return
            for entry in list(layout.root.iterdir()):
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
            if not had_folder:
                layout.root.rmdir()
        finally:
            os.close(lock)
    except (RigError, OSError) as error:
        with contextlib.suppress(OSError):
            _log.warning("failed_rig_not_removed", folder=str(layout.root), reason=str(error))
