"""Things that processes of a test session may leave on this machine below a folder: mounts, loop devices, processes."""

from __future__ import annotations

import os
from pathlib import Path

from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.guests import loop_devices


def leftovers(folder: Path) -> list[str]:
    """Return a line for each mount, loop device and other process that names a path in the folder."""
    folders = [folder, *_linked(folder)]

    def is_below(path: str) -> bool:
        return any(Path(path).is_relative_to(each) for each in folders)

    found = [f"mount {point}" for _, _, point in loop_devices.mounts() if is_below(point)]
    found += [f"{use.loop} on {use.disk}" for use in loop_devices.loop_uses() if is_below(use.disk)]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = os.fsdecode((entry / "cmdline").read_bytes()).split("\0")
            except OSError:  # it ended meanwhile
                continue
            if any(str(each) in word for word in words for each in folders):
                found.append(f"process {entry.name}: {' '.join(words)}")
    return found


def _linked(folder: Path) -> list[Path]:
    """Return the folders of rigs that lie elsewhere, because the path of a socket may not be long."""
    links = []
    for top, names, _ in os.walk(folder):  # it passes over folders that cannot be read, such as a mount that ends now
        links += [Path(top, name) for name in names if name == "rig" and Path(top, name).is_symlink()]
        names[:] = [name for name in names if name not in ("mnt", "fs", "disks", "rig")]
    return [link.readlink() for link in links]


def await_no_leftovers(folder: Path, limit_s: float = 60.0) -> None:
    """Wait until nothing is left; fail with the list after ``limit_s`` seconds."""
    deadline_ns = SYSTEM_CLOCK.monotonic_ns() + int(limit_s * 1e9)
    while left := leftovers(folder):
        assert SYSTEM_CLOCK.monotonic_ns() < deadline_ns, left
        SYSTEM_CLOCK.sleep_thread(0.05)
