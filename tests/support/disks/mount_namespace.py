"""A mount namespace of another process: it begins with a copy of every mount, which outlives the original."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SCRIPT = """
    mount | while read -r device _ where _; do  # the mounts of other tests must not stay
        case "$where" in "$0") ;; *) case "$device" in /dev/loop*) umount --lazy "$where" ;; esac ;; esac
    done
    echo
    exec sleep 60
"""


@contextmanager
def copied_mount(where: Path) -> Iterator[int]:
    """Keep a copy of the mount at ``where`` for the time of the block; yield the id of the process that has it."""
    with subprocess.Popen(["unshare", "--mount", "sh", "-c", _SCRIPT, str(where)], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"\n"
            yield holder.pid
        finally:
            holder.kill()
