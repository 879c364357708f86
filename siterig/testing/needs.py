"""The checks whether this machine can give a test its fixtures."""

from __future__ import annotations

import functools

from siterig.blockfs.core.errors import Code, ExitStatus, RigError
from siterig.cli.doctor import CAP_SYS_ADMIN, ThisMachine


def is_lacking(error: RigError) -> bool:
    """Return True if the error means that this machine, or this user, lacks something that the test needs."""
    return error.code.exit_status is ExitStatus.ENVIRONMENT


@functools.cache
def require_mounts(kind: str) -> None:
    """Check that this process may mount a file system of this kind through a loop device.

    Raises:
        RigError: ``NotPermitted``, ``MachineUnfit``, with the remedy.
    """
    machine = ThisMachine()
    if not machine.capabilities() >> CAP_SYS_ADMIN & 1:
        raise RigError(
            Code.NotPermitted,
            "a mounted file system needs CAP_SYS_ADMIN, which this process lacks: run the tests as root, or in a privileged "
            "container; siterig_disk needs only /dev/fuse and fusermount3",
        )
    try:
        machine.free_loop()
    except OSError as exc:
        raise RigError(
            Code.MachineUnfit,
            f"there is no free loop device ({exc}): modprobe loop, as root; in a container: run it privileged, with the "
            "host's /dev; siterig doctor checks it",
        ) from exc
    if kind not in machine.kernel_filesystems():
        raise RigError(Code.MachineUnfit, f"this kernel has no {kind}: use fs=, --siterig-fs or siterig_fs with another one")
