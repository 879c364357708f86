"""Processor time and memory of the processes of a rig, by role."""

from __future__ import annotations

import os
import socket
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from siterig.core.paths import Layout
from siterig.testing.testbed import Testbed

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """Processor seconds and PSS in bytes of processes by their role."""

    cpu_s: dict[str, float]
    pss_bytes: dict[str, int]


def _children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found[int(fields[1])].append(int(path.parent.name))
    return found


def _tree(pid: int, children: dict[int, list[int]]) -> Iterator[int]:
    yield pid
    for child in children.get(pid, ()):
        yield from _tree(child, children)


def _supervisor(layout: Layout) -> int:
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(str(layout.socket("supervisor")))
        credentials = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", credentials)[0]
    return pid


async def processes(rig: Testbed) -> dict[int, str]:
    """Return the processes of a rig by their id, with the role of each; without the program of Azurite."""
    children, supervisor = _children(), _supervisor(rig.layout)
    roles = {role.pid: role.name for role in (await rig.supervisor.status()).roles if role.pid is not None}
    found = dict.fromkeys(_tree(supervisor, children), "supervisor")
    for pid, name in roles.items():
        found |= dict.fromkeys(_tree(pid, children), name)
    program = {pid for pid, name in found.items() if name == "azurite" and pid not in roles}
    return {pid: name for pid, name in found.items() if pid not in program}


def usage(pids: dict[int, str]) -> Usage:
    """Return the usage of these processes until now."""
    cpu_s: dict[str, float] = defaultdict(float)
    pss_bytes: dict[str, int] = defaultdict(int)
    for pid, name in pids.items():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            memory = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:  # a helper process that has ended
            continue
        cpu_s[name] += (int(fields[11]) + int(fields[12])) / TICKS
        for line in memory.splitlines():
            if line.startswith("Pss:"):
                pss_bytes[name] += int(line.split()[1]) << 10
    return Usage(dict(cpu_s), dict(pss_bytes))


def reset_peaks(pids: Iterable[int]) -> None:
    """Begin to measure the peaks of :func:`peaks` (proc_pid_clear_refs(5))."""
    for pid in pids:
        with suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")


def peaks(pids: dict[int, str]) -> dict[str, int]:
    """Return the largest memory of processes in bytes by their role: PSS now, and the peak of RSS above RSS now."""
    found = usage(pids).pss_bytes
    for pid, name in pids.items():
        with suppress(OSError):
            lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            found[name] += (int(lines["VmHWM"].split()[0]) - int(lines["VmRSS"].split()[0])) << 10
    return found
