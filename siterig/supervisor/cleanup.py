"""Giving back what a rig holds on this host, by what the kernel shows and never by memory.

Right after any kill, therefore, of the supervisor too: mounts, loop devices and processes are looked up in
``/proc`` and sysfs.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import trio

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.guests import hostmounts
from siterig.core.paths import Layout

_KILL_TIMEOUT_S = 10.0


def mounts_below(prefix: Path) -> list[Path]:
    """Mount points at or below ``prefix``, the newest first."""
    found = [Path(point) for _, _, point in hostmounts.mounts()]
    return [point for point in reversed(found) if point.is_relative_to(prefix)]


async def release_guests(prefix: Path) -> list[str]:
    """Unmount and detach all that uses disks below ``prefix``; ``VmBusy`` names who holds one."""
    return await hostmounts.release_below(prefix)


async def unmount_stale(prefix: Path) -> list[str]:
    """Take away every mount at or below ``prefix``; nobody serves them any more.  Says what was done."""
    done = []
    for point in mounts_below(prefix):
        # Lazily: a process that stands in a dead mount cannot be helped by waiting for it.
        result = await trio.run_process(
            ["umount", "--no-canonicalize", "--lazy", str(point)], capture_stderr=True, check=False, start_new_session=True
        )
        if result.returncode != 0:
            raise RigError(Code.UnmountFailed, f"mount {point} cannot be unmounted: {result.stderr.decode().strip()}")
        done.append(f"unmounted {point}")
    return done


def _processes_of(layout: Layout) -> list[tuple[int, str]]:
    """(process id, command) of every role of this rig, and of the Azurite that it started."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = os.fsdecode((entry / "cmdline").read_bytes()).split("\0") if entry.name.isdigit() else []
        except OSError:
            continue  # it ended meanwhile
        role = str(layout.root) in words and any(word.startswith("siterig.roles.") for word in words)
        node = str(layout.azurite) in words and Path(words[0]).name.startswith("node")
        if role or node:
            found.append((int(entry.name), " ".join(words).strip()))
    return found


async def _kill_strays(layout: Layout) -> list[str]:
    done = []
    for pid, command in _processes_of(layout):
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            done.append(f"killed {pid}, left over: {command}")
            with trio.move_on_after(_KILL_TIMEOUT_S):
                await trio.lowlevel.wait_readable(pidfd)
        except ProcessLookupError:
            continue
        finally:
            os.close(pidfd)
    return done


async def clear(layout: Layout) -> list[str]:
    """After the supervisor is gone: end left-over roles, give back guests' mounts and loop devices, and our mounts.

    The caller holds the rig's lock.  Says what it did; nothing to do is an empty list.
    """
    done = await _kill_strays(layout)
    done += await release_guests(layout.root)
    for socket in layout.socket("").parent.glob("*.sock"):
        socket.unlink()
    return done + await unmount_stale(layout.root)
