"""The cost of a rig whose protected VMs do nothing: processor time and memory of all its processes but Azurite's program.

``python -m bench.idle [--vms 1 8 64] [--interval 300] [--seconds 120] [--folder DIR]``; needs FUSE and Azurite.

A rig gets VMs of one empty disk each, a number of ``--vms`` after the other.  When all of them are protected, and nothing
waits to be applied, the processor time of ``--seconds`` is measured, and the memory: the proportional set size (PSS) of all
processes, so that shared pages count once.  Measure for a whole interval: then each VM has one cycle in it.  Other programs
on the machine make processor time dearer, too: compare only numbers of one run.
"""

from __future__ import annotations

import argparse
import os
import socket
import struct
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import trio

from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.core.paths import Layout
from siterig.testing.testbed import Testbed

DISK_BYTES = 16 << 20
READY_S = 900.0
POLL_S = 1.0
TICKS = os.sysconf("SC_CLK_TCK")
CORE_SHARE_MAX, VM_BYTES_MAX = 0.02, 4 << 20
"""The targets: processor time of 64 VMs at an interval of 300 s, and memory of each VM beyond the first."""


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


async def _protect(rig: Testbed, first: int, count: int, interval_s: float) -> None:
    for number in range(first, count):
        vm = f"idle{number:03d}"
        await rig.vault.create_vm(vm=vm, disks=[DiskSpec(name="data", size_bytes=DISK_BYTES)])
        await rig.vault.enable_protection(vm=vm, interval_s=interval_s)
    with trio.fail_after(READY_S):
        while not await _is_idle(rig):  # noqa: ASYNC110 (the vault is another process)
            await trio.sleep(POLL_S)


async def _is_idle(rig: Testbed) -> bool:
    return all(item.protectionState == "Protected" and not item.unapplied_bytes for item in await rig.vault.items())


async def _points(rig: Testbed) -> int:
    return sum([len(await rig.vault.points(vm=item.name)) for item in await rig.vault.items()])


async def measure(folder: Path, counts: list[int], interval_s: float, seconds: float) -> dict[int, tuple[float, int]]:
    """Return the share of a core and the bytes of PSS for each number of VMs."""
    found: dict[int, tuple[float, int]] = {}
    async with Testbed.up(folder / "rig") as rig:
        for first, count in zip([0, *counts], counts, strict=False):
            await _protect(rig, first, count, interval_s)
            await trio.sleep(POLL_S)
            pids = await processes(rig)
            points, before = await _points(rig), usage(pids)
            begun = trio.current_time()
            await trio.sleep(seconds)
            after, passed_s = usage(pids), trio.current_time() - begun
            cycles = await _points(rig) - points
            spent = {name: after.cpu_s[name] - before.cpu_s[name] for name in after.cpu_s}
            share, pss_bytes = sum(spent.values()) / passed_s, sum(after.pss_bytes.values())
            print(f"{count} VMs: {share:.2%} of a core in {passed_s:.0f} s with {cycles} cycles", flush=True)
            print("  ", *(f"{name} {value / passed_s:.2%}" for name, value in sorted(spent.items())), sep="  ")
            print(f"   PSS {pss_bytes / 2**20:.0f} MiB", end="")
            print(*(f"  {name} {value / 2**20:.0f}" for name, value in sorted(after.pss_bytes.items())), flush=True)
            found[count] = (share, pss_bytes)
    return found


def main() -> None:
    """Measure all numbers of VMs, and compare with the targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vms", type=int, nargs="+", default=[1, 8, 64], help="numbers of VMs, ascending")
    parser.add_argument("--interval", type=float, default=300.0, help="the replication interval in seconds")
    parser.add_argument("--seconds", type=float, default=300.0, help="seconds of each measurement")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.vms != sorted(set(options.vms)) or options.vms[0] < 1:
        parser.error(f"--vms {options.vms}: allowed are ascending numbers from 1")
    with tempfile.TemporaryDirectory(prefix="siterig-bench-", dir=options.folder) as folder:
        found = trio.run(measure, Path(folder), options.vms, options.interval, options.seconds)
    first, last = options.vms[0], options.vms[-1]
    print(f"{last} VMs: {found[last][0]:.2%} of a core, at most {CORE_SHARE_MAX:.0%}")
    if last > first:
        each = (found[last][1] - found[first][1]) / (last - first)
        print(f"memory of a VM beyond the first {first}: {each / 2**20:.2f} MiB, at most {VM_BYTES_MAX >> 20} MiB")


if __name__ == "__main__":
    main()
