"""The folders on which the disks of a workload must be mounted.

A disk can be unmounted while a step runs: its host died, and its leftovers were removed.  The folder of the mount then
shows the folder of this machine below it, and a file that a step creates there is on no disk.  So a workload looks after
its start, and again before each acknowledgement.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path


class MountedFolders:
    """The mount points of disks, as they were at the start.

    Args:
        folders: the mount points.

    Raises:
        OSError: ``ENODEV``, because no disk is mounted on one of them.
    """

    def __init__(self, folders: Sequence[Path] = ()) -> None:
        self._devices: dict[Path, int] = {}
        for folder in folders:
            if not folder.is_mount():
                raise OSError(errno.ENODEV, "no disk is mounted", str(folder))
            self._devices[folder] = folder.stat().st_dev

    def check(self) -> None:
        """Check that the same disks are mounted as at the start.

        Raises:
            OSError: ``ENODEV``, because a disk is no longer mounted, or another one is.
        """
        for folder, device in self._devices.items():
            if not folder.is_mount() or folder.stat().st_dev != device:
                raise OSError(errno.ENODEV, "the disk is no longer mounted", str(folder))
