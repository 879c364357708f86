"""A mount namespace of another process: it begins with a copy of every mount, which outlives the original."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNMOUNT = """
    mount | while read -r device _ where _ type _; do
        [ "$where" = "$0" ] || case "$device $type" in /dev/loop*|*" fuse"*) umount --lazy "$where" || : ;; esac
    done
"""
"""Lines of a shell script in a new mount namespace: mounts of other tests, but not the one at ``$0``, must not stay in it.

A copy keeps a loop device attached, or the server of a FUSE file system alive.
"""


@contextmanager
def copied_mount(where: Path) -> Iterator[int]:
    """Keep a copy of the mount at ``where`` for the time of the block; yield the id of the process that has it."""
    command = ["unshare", "--mount", "sh", "-c", f"{UNMOUNT}\necho\nexec sleep 60", str(where)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"\n"
            yield holder.pid
        finally:
            holder.kill()
