"""The cost of a rig whose protected VMs do nothing: processor time and memory of all its processes but Azurite's program.

``python -m bench.idle [--vms 1 8 64] [--interval 300] [--seconds 120] [--folder DIR]``; needs FUSE and Azurite.

A rig gets VMs of one empty disk each, a number of ``--vms`` after the other.  When all of them are protected, and nothing
waits to be applied, the processor time of ``--seconds`` is measured, and the memory: the proportional set size (PSS) of all
processes, so that shared pages count once.  Measure for a whole interval: then each VM has one cycle in it.  Other programs
on the machine make processor time dearer, too: compare only numbers of one run.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import trio

from bench.idle.processes import processes, usage
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.testing.testbed import Testbed

DISK_BYTES = 16 << 20
READY_S = 900.0
POLL_S = 1.0
CORE_SHARE_MAX, VM_BYTES_MAX = 0.02, 4 << 20
"""The targets: processor time of 64 VMs at an interval of 300 s, and memory of each VM beyond the first."""


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
