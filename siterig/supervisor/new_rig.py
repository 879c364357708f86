"""A rig whose first start failed: it never came up, so nothing of it stays but what its logs said last.

Fault contract: nothing is removed of a rig that was up once, nor of one that another process has up, or takes up meanwhile.
A kill in between leaves a folder that ``siterig up`` goes on from or ``siterig down`` clears.
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
"""Of each log."""
_log = structlog.get_logger(__name__)


def is_new(layout: Layout) -> bool:
    """Nothing is in its folder, but perhaps the lock of a first start that was cut off."""
    return not layout.root.is_dir() or {entry.name for entry in layout.root.iterdir()} <= {layout.lock.name}


def tell_logs(layout: Layout, names: list[str], tell: Callable[[str, str], None]) -> None:
    """Call ``tell(name, line)`` with the last lines of these logs, which :func:`remove` takes away."""
    for name in names:
        for line in last_lines(layout.log(name), LINES_SHOWN):
            tell(name, f"its log said: {line}")


async def remove(layout: Layout, *, had_folder: bool) -> None:
    """Remove all that was made of the rig; its folder too, unless it was there before.

    Anything that is still in use, or mounted, stays, and is written to the log of this process.
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
