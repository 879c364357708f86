"""Releases everything that a rig holds on this host: mounts, loop devices and processes.

They are found in ``/proc`` and sysfs, never by a record of the rig, so this also works right after a kill of the supervisor.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import trio

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.guests import loop_devices
from siterig.core.paths import Layout
from siterig.supervisor import forker

_KILL_TIMEOUT_S = 10.0


def mounts_below(prefix: Path) -> list[Path]:
    """Return the mount points at or below ``prefix``, the newest first."""
    found = [Path(point) for _, _, point in loop_devices.mounts()]
    return [point for point in reversed(found) if point.is_relative_to(prefix)]


async def release_guests(prefix: Path) -> list[str]:
    """Unmount and detach everything that uses disks below ``prefix``.

    Returns:
        One line for each action.
    Raises:
        RigError: ``VmBusy`` names the process that holds a disk.
    """
    return await loop_devices.release_below(prefix)


async def unmount_stale(prefix: Path) -> list[str]:
    """Unmount every mount at or below ``prefix``, whose servers have ended; return one line for each action."""
    done = []
    for point in mounts_below(prefix):
        # Lazily: waiting does not help a process whose working directory is in a dead mount.
        result = await trio.run_process(
            ["umount", "--no-canonicalize", "--lazy", str(point)], capture_stderr=True, check=False, start_new_session=True
        )
        if result.returncode != 0:
            raise RigError(Code.UnmountFailed, f"mount {point} cannot be unmounted: {result.stderr.decode().strip()}")
        done.append(f"unmounted {point}")
    return done


def processes_of(layout: Layout) -> list[tuple[int, str]]:
    """Return (process id, command) of every role of this rig, of their fork server, and of the Azurite."""
    processes = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [(pid, command) for pid in processes if (command := _command_of(layout, pid)) is not None]


def _command_of(layout: Layout, pid: int) -> str | None:
    """Return the command of a process of this rig; None for all other processes, and for one that has ended."""
    try:
        words = os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")
    except OSError:
        return None
    role = str(layout.root) in words and any(word.startswith(("siterig.roles.", forker.SERVER)) for word in words)
    node = str(layout.azurite) in words and Path(words[0]).name.startswith("node")
    return " ".join(words).strip() if role or node else None


async def _kill_strays(layout: Layout) -> list[str]:
    done = []
    for pid, command in processes_of(layout):
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if _command_of(layout, pid) is None:
                continue  # it has ended, and the descriptor is another process with its number
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
    """End the roles that a supervisor left, and release guests' mounts, loop devices and the rig's own mounts.

    The caller holds the rig's lock.

    Returns:
        One line for each action; an empty list if there was nothing to do.
    """
    done = await _kill_strays(layout)
    done += await release_guests(layout.root)
    for folder in (layout.socket("").parent, layout.link("", "").parent):
        for socket in folder.glob("*.sock"):
            socket.unlink()
    return done + await unmount_stale(layout.root)
